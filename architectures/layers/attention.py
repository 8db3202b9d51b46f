"""Grouped-query attention of ragged rows over the paged cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from max.dtype import DType
from max.graph import BufferValue, DeviceRef, TensorValue, ops
from max.nn.kv_cache import PagedCacheValues

from architectures.layers.linear import column_parallel, row_parallel
from architectures.layers.norm import RMSNorm
from architectures.layers.paged_attention import HeadNorms, paged_attention, rotate, rotate_and_store
from architectures.layers.weights import Partial, Replicated, Sharded, WeightTable
from kv_cache import PageGroup
from pipelines.loading.weight_spec import WeightSource

SLIDING, FULL = "sliding_attention", "full_attention"
"""Layer types; a page group and a RoPE table of the same name belong to each."""


@dataclass(frozen=True)
class RaggedBatch:
    """Offsets, positions and pages of a step's ragged rows, on each device.

    row_offsets [B + 1]. position_ids [1, T]. freqs_cis: the RoPE tables [positions, H] by layer type, one per device.
    pages: the cache by page group, one entry per device.
    """

    row_offsets: Replicated
    position_ids: Replicated
    freqs_cis: Mapping[str, Sequence[TensorValue]]
    pages: Mapping[str, Sequence[PagedCacheValues]]
    signal_buffers: Sequence[BufferValue]


@dataclass(frozen=True)
class Attention:
    """The attention of one layer type.

    group: the page group of its keys and values, with their window, if any.
    scale: the factor of the scores.
    bias: whether the projections have biases.
    qk_norm: the norm of queries and keys (QK-norm), head by head, before RoPE.
    normalizes_values: whether qk_norm is applied to values too, there without a weight.
    has_values: whether values have a projection; otherwise they are the keys before norm and RoPE.
    bidirectional: whether a token sees all tokens of its chunk, or only those before it.
    """

    hidden_size: int
    num_heads: int
    group: PageGroup
    scale: float
    bias: bool = False
    qk_norm: RMSNorm | None = None
    normalizes_values: bool = False
    has_values: bool = True
    bidirectional: bool = False

    def __call__(
        self, weights: WeightTable, x: Replicated, name: str, index: int, batch: RaggedBatch, stores: bool = True
    ) -> Partial:
        """Applies attention: x [T, D] -> [T, D], to be summed over the devices.

        Args:
            weights: The weights of the graph.
            x: The hidden states.
            name: Prefix of the layer's weights.
            index: Place of the layer's keys and values in the page group.
            batch: The rows of the step.
            stores: False for a layer with KV sharing, which reads keys and values that another layer has stored.
        """
        sources = self._projections(name, stores)
        qkv = column_parallel(weights, x, f"{name}.{''.join(sources)}_proj", list(sources.values()), self.bias)
        num_heads = {letter: s.shard_size(len(x)) // self.group.head_dim for letter, s in sources.items()}
        layer = ops.constant(index, DType.uint32, DeviceRef.CPU())
        attended = []
        for i, (shard, norms) in enumerate(zip(qkv, self._norm_weights(weights, name, sources), strict=True)):
            if stores:
                q = self._rotate_and_store(shard, norms, i, num_heads, layer, batch)
            else:
                q = self._rotate(self._normalize(shard, num_heads, norms), i, batch)
            attended.append(self._attend(q, i, layer, batch))
        width = self.num_heads * self.group.head_dim
        out = WeightSource(f"{name}.o_proj.weight", (self.hidden_size, width), axis=1, units=self.num_heads)
        return row_parallel(weights, Sharded(attended), out, self.bias)

    def _projections(self, name: str, stores: bool) -> dict[str, WeightSource]:
        """Projections of queries, keys and values that the layer has, each cut by heads."""
        counts = {"q": self.num_heads}
        if stores:
            counts |= dict.fromkeys("kv" if self.has_values else "k", self.group.num_kv_heads)
        return {
            letter: WeightSource(
                f"{name}.{letter}_proj.weight", (count * self.group.head_dim, self.hidden_size), axis=0, units=count
            )
            for letter, count in counts.items()
        }

    def _norm_weights(self, weights: WeightTable, name: str, letters: Iterable[str]) -> list[dict[str, TensorValue]]:
        """QK-norm weights of queries and keys, for each device."""
        normed = [letter for letter in letters if letter != "v"] if self.qk_norm else []
        replicas = {
            letter: weights.replicated(f"{name}.{letter}_norm.weight", [self.group.head_dim]) for letter in normed
        }
        return [{letter: shards[i] for letter, shards in replicas.items()} for i in range(len(weights.devices))]

    def _normalize(
        self, qkv: TensorValue, num_heads: Mapping[str, int], norms: Mapping[str, TensorValue]
    ) -> TensorValue:
        """Normalizes queries, keys and values head by head: [T, heads * H] -> [T, heads, H]."""
        head_dim = self.group.head_dim
        qkv = qkv.reshape((-1, sum(num_heads.values()), head_dim))
        if self.qk_norm is None:
            return qkv
        split = dict(zip(num_heads, ops.split(qkv, list(num_heads.values()), axis=1), strict=True))
        heads = {letter: self.qk_norm.apply(split[letter], norm) for letter, norm in norms.items()}
        if "k" in split:
            values = split["v" if self.has_values else "k"]
            heads["v"] = self.qk_norm.without_weight(values, head_dim) if self.normalizes_values else values
        return ops.concat(list(heads.values()), axis=1) if len(heads) > 1 else heads["q"]

    def _rotate_and_store(
        self,
        qkv: TensorValue,
        norms: Mapping[str, TensorValue],
        device: int,
        num_heads: Mapping[str, int],
        layer: TensorValue,
        batch: RaggedBatch,
    ) -> TensorValue:
        """Normalizes heads, rotates queries and keys, stores keys and values, and returns the queries [T, N, H]."""
        head_norms = None
        if self.qk_norm is not None and qkv.device.is_cpu():
            norm = self.qk_norm
            head_norms = HeadNorms(norms["q"], norms["k"], norm.weight_offset, norm.epsilon, self.normalizes_values)
        else:
            qkv = self._normalize(qkv, num_heads, norms).reshape((qkv.shape[0], -1))
        return rotate_and_store(
            self.group,
            qkv,
            batch.row_offsets[device],
            batch.freqs_cis[self.group.name][device],
            batch.position_ids[device],
            batch.pages[self.group.name][device],
            layer,
            num_heads["q"],
            head_norms,
        )

    def _rotate(self, q_TNH: TensorValue, device: int, batch: RaggedBatch) -> TensorValue:
        return rotate(q_TNH, batch.freqs_cis[self.group.name][device], batch.position_ids[device])

    def _attend(self, q_TNH: TensorValue, device: int, layer: TensorValue, batch: RaggedBatch) -> TensorValue:
        """Attends to the cached keys and values: [T, N, H] -> [T, N * H]."""
        a = paged_attention(
            self.group,
            q_TNH,
            batch.row_offsets[device],
            batch.pages[self.group.name][device],
            layer,
            self.scale,
            self.bidirectional,
        )
        return a.reshape((a.shape[0], -1))
