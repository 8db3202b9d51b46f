"""Vocabulary-parallel embedding and head: each device has a share of the rows of [V, D].

Shares are equally long: where the vocabulary does not divide, the loader pads the last ones with rows of zeros.
Source: https://arxiv.org/abs/1909.08053, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from max.dtype import DType
from max.graph import TensorValue, ops

from architectures.layers.collectives import gather_columns
from architectures.layers.linear import matmul
from architectures.layers.weights import Partial, Replicated, Sharded, WeightTable
from pipelines.loading.encoding import Encoding, Matrix
from pipelines.loading.weight_spec import WeightSource

NUM_ROWS = 16
"""A device's number of rows is a multiple of this: GPUs' products compute whole tiles of columns."""


@dataclass(frozen=True)
class Vocabulary:
    """The embedding or the head of a graph. matrices: each device's rows."""

    source: WeightSource
    matrices: list[Matrix]

    @classmethod
    def declare(cls, weights: WeightTable, name: str, shape: tuple[int, int], encoding: Encoding) -> Vocabulary:
        """Declares the matrix [V, D] of this name, which a tied head shares with the embedding."""
        source = WeightSource(name, shape, axis=0, units=shape[0], padding=NUM_ROWS)
        return cls(source, weights.matrices(name, [source], encoding))

    def embed(self, tokens: Replicated, dtype: DType) -> Partial:
        """Looks up the rows of tokens [T] in type `dtype`: [T, D], to be summed over the devices.

        A device that does not have a token's row contributes zeros.
        """
        if len(self.matrices) == 1:
            return Partial([self._rows(0, tokens[0], dtype)])
        num_rows, parts = self.source.shard_size(len(self.matrices)), []
        for shard, tokens_T in enumerate(tokens):
            local_T = tokens_T - shard * num_rows
            is_own_T = ops.logical_and(local_T >= 0, local_T < num_rows)
            zero = ops.constant(0, tokens_T.dtype, tokens_T.device)
            rows_TD = self._rows(shard, ops.where(is_own_T, local_T, zero), dtype)
            parts.append(rows_TD * ops.cast(ops.unsqueeze(is_own_T, 1), dtype))
        return Partial(parts)

    def logits(self, x: Replicated) -> TensorValue:
        """Multiplies x [M, D] by the head, each device with its rows: [M, V] on the first device, without padding."""
        shards = [matmul(shard, matrix) for shard, matrix in zip(x, self.matrices, strict=True)]
        logits_MV, vocab_size = gather_columns(Sharded(shards)), self.source.shape[0]
        return logits_MV if int(logits_MV.shape[1]) == vocab_size else logits_MV[:, :vocab_size]

    def _rows(self, shard: int, rows_T: TensorValue, dtype: DType) -> TensorValue:
        matrix = self.matrices[shard]
        return ops.cast(matrix.encoding.gather(matrix, rows_T), dtype)
