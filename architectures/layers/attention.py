"""Grouped-query attention over the paged cache, ragged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from max.dtype import DType
from max.graph import BufferValue, DeviceRef, TensorValue, ops
from max.nn.attention import MHAMaskVariant
from max.nn.kernels import flash_attention_ragged, rope_split_store_ragged
from max.nn.kv_cache import PagedCacheValues

from architectures.layers.collectives import broadcast
from architectures.layers.linear import column_parallel, row_parallel
from architectures.layers.norm import RMSNorm
from architectures.layers.weights import Part, Shards, WeightTable
from kv_cache import PageGroup
from pipelines.decoder_inputs import DecoderValues

MIN_CPU_WINDOW = 128
"""The CPU kernel's sliding mask does not compile for a window below its unrolled vector width."""


@dataclass(frozen=True)
class Rows:
    """Where the ragged rows of a step are, in the batch and in the cache, on each device.

    row_offsets [B + 1], position_ids [1, T]. freqs_cis: the RoPE tables [positions, H] by kind of layer, pages: the
    cache by page group; both with an entry for each device.
    """

    row_offsets: Shards
    position_ids: Shards
    freqs_cis: Mapping[str, Sequence[TensorValue]]
    pages: Mapping[str, Sequence[PagedCacheValues]]
    signal_buffers: Sequence[BufferValue]

    @classmethod
    def of(cls, inputs: DecoderValues, devices: Sequence[DeviceRef]) -> Self:
        return cls(
            row_offsets=broadcast(inputs.input_row_offsets, devices),
            position_ids=broadcast(inputs.position_ids, devices),
            freqs_cis=inputs.freqs_cis,
            pages=inputs.kv_cache_inputs,
            signal_buffers=inputs.signal_buffers,
        )


@dataclass(frozen=True)
class Attention:
    """The attention of one kind of layer.

    group: the page group its keys and values live in (with their window, if any).
    rope: the key of its table in the inputs' `freqs_cis`.
    scale: what the scores are multiplied by.
    bias: whether the projections have biases.
    qk_norm: how queries and keys are normalized, head by head, before RoPE.
    """

    hidden_size: int
    num_heads: int
    group: PageGroup
    rope: str
    scale: float
    bias: bool = False
    qk_norm: RMSNorm | None = None

    def __call__(self, weights: WeightTable, x: Shards, name: str, index: int, rows: Rows) -> Shards:
        """x [T, D] -> [T, D]: parts, to be summed over the devices. index: the layer's place in its page group."""
        head_dim, num_kv_heads = self.group.head_dim, self.group.num_kv_heads
        parts = [
            Part(f"{name}.q_proj", self.num_heads * head_dim, self.num_heads),
            Part(f"{name}.k_proj", num_kv_heads * head_dim, num_kv_heads),
            Part(f"{name}.v_proj", num_kv_heads * head_dim, num_kv_heads),
        ]
        qkv = column_parallel(weights, x, f"{name}.qkv_proj", parts, self.hidden_size, self.bias)
        num_heads = [part.sharded(len(x)) // head_dim for part in parts]
        qkv = self._normalize(weights, qkv, name, num_heads)
        layer = ops.constant(index, DType.uint32, DeviceRef.CPU())
        attended = [self._attend(shard, i, num_heads[0], layer, rows) for i, shard in enumerate(qkv)]
        out = Part(f"{name}.o_proj", self.num_heads * head_dim, self.num_heads)
        return row_parallel(weights, attended, out, self.hidden_size, self.bias)

    def _normalize(self, weights: WeightTable, qkv: Shards, name: str, num_heads: list[int]) -> Shards:
        """Queries and keys normalized head by head; values as they are."""
        if self.qk_norm is None:
            return qkv
        head_dim = self.group.head_dim
        scales = [weights.copies(f"{name}.{part}_norm.weight", [head_dim]) for part in "qk"]
        normalized = []
        for shard, q_scale, k_scale in zip(qkv, *scales, strict=True):
            q, k, v = ops.split(shard.reshape((-1, sum(num_heads), head_dim)), num_heads, axis=1)
            heads = [self.qk_norm.apply(q, q_scale), self.qk_norm.apply(k, k_scale), v]
            normalized.append(ops.concat(heads, axis=1).reshape(shard.shape))
        return normalized

    def _attend(self, qkv: TensorValue, device: int, num_heads: int, layer: TensorValue, rows: Rows) -> TensorValue:
        """Rotates, stores keys and values, attends: one device's [T, (N + 2 K) H] -> [T, N H]."""
        params, pages, row_offsets = (
            self.group.max_params,
            rows.pages[self.group.name][device],
            rows.row_offsets[device],
        )
        q = rope_split_store_ragged(
            params,
            qkv,
            row_offsets,
            rows.freqs_cis[self.rope][device],
            pages,
            layer,
            num_heads,
            interleaved=False,
            position_ids=rows.position_ids[device],
        )
        window = self.group.window
        a = flash_attention_ragged(
            params,
            q.reshape((-1, num_heads, self.group.head_dim)),
            row_offsets,
            pages,
            layer,
            MHAMaskVariant.CAUSAL_MASK if window is None else MHAMaskVariant.SLIDING_WINDOW_CAUSAL_MASK,
            self.scale,
            local_window_size=-1 if window is None else window,
        )
        return a.reshape((-1, num_heads * self.group.head_dim))
