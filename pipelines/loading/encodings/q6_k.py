"""The encoding q6_k: blocks of 256 weights in 6 bits, with a scale in 8 bits for each 16 of them."""

from __future__ import annotations

from pipelines.loading.block_encoding import BlockEncoding

RECORD = BlockEncoding("q6_k", fallback_name="q8_0")
