"""The encoding q4_1: blocks of 32 weights in 4 bits, with a scale and a minimum in float16."""

from __future__ import annotations

from pipelines.loading.block_encoding import BlockEncoding

RECORD = BlockEncoding("q4_1")
