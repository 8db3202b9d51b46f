"""The encoding q4_0: blocks of 32 weights in 4 bits, with a scale in float16."""

from __future__ import annotations

from pipelines.loading.block_encoding import BlockEncoding

RECORD = BlockEncoding("q4_0")
