"""The encoding q5_k: blocks of 256 weights in 5 bits, with a scale and a minimum in 6 bits for each 32 of them.

Matrices whose rows are no multiple of 256 are in q5_1, as llama.cpp stores them.
"""

from __future__ import annotations

from pipelines.loading.block_encoding import BlockEncoding

RECORD = BlockEncoding("q5_k", fallback_name="q5_1")
