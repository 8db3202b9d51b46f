"""The encoding q8_0: blocks of 32 weights in 8 bits, with a scale in float16."""

from __future__ import annotations

from pipelines.loading.block_encoding import BlockEncoding

RECORD = BlockEncoding("q8_0")
