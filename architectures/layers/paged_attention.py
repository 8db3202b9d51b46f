"""RoPE and attention over the keys and values in a page group: MAX's kernels on GPU, our own on CPU.

Ours are compiled once for all masks and sizes, which are arguments; and they know more types of a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from max.dtype import DType
from max.graph import DeviceRef, TensorType, TensorValue, ops
from max.nn.attention import MHAMaskVariant
from max.nn.kernels import flash_attention_ragged, rope_ragged_with_position_ids, rope_split_store_ragged
from max.nn.kv_cache import PagedCacheValues

from kv_cache import PageGroup

MASKS = {
    (False, False): MHAMaskVariant.CAUSAL_MASK,
    (False, True): MHAMaskVariant.SLIDING_WINDOW_CAUSAL_MASK,
    (True, False): MHAMaskVariant.NULL_MASK,
    (True, True): MHAMaskVariant.SLIDING_WINDOW_NONCAUSAL_MASK,
}
"""Masks by (is bidirectional, is sliding)."""
HEAD_DIMS = range(16, 513, 16)
"""Sizes of a head that our kernels compute: whole vectors, up to the width of their blocks."""


@dataclass(frozen=True)
class HeadNorms:
    """Norms of heads: of queries and keys with weights [H], to which an offset is added; of values without."""

    queries: TensorValue
    keys: TensorValue
    weight_offset: float
    epsilon: float
    has_values: bool

    def arguments(self) -> list[TensorValue]:
        """The kernel's operands, in its order."""
        host = DeviceRef.CPU()
        return [
            self.queries,
            self.keys,
            ops.constant(self.weight_offset, DType.float32, host),
            ops.constant(self.epsilon, DType.float32, host),
            ops.constant(int(self.has_values), DType.int32, host),
        ]


def paged_attention(
    group: PageGroup,
    q_TNH: TensorValue,
    row_offsets: TensorValue,
    pages: PagedCacheValues,
    layer: TensorValue,
    scale: float,
    bidirectional: bool = False,
) -> TensorValue:
    """Computes softmax(q @ keys.T * scale) @ values for each head: [T, N, H].

    A token sees itself and the tokens before it, with a window so many in all, and if bidirectional also those after
    it. On CPU sums are float32, whatever the type of the cache.

    Args:
        group: The page group.
        q_TNH: The queries.
        row_offsets: [B + 1].
        pages: The cache; keys and values of these tokens are in it.
        layer: Place of the layer in the page group, a uint32 on the host.
        scale: The factor of the scores.
        bidirectional: Whether a token sees all tokens of its chunk.
    """
    if not q_TNH.device.is_cpu():
        mask, window = MASKS[bidirectional, group.window is not None], group.window or -1
        return flash_attention_ragged(
            group.max_params, q_TNH, row_offsets, pages, layer, mask, scale, local_window_size=window
        )
    host = DeviceRef.CPU()
    arguments = [
        ops.constant(scale, DType.float32, host),
        ops.constant(group.window or 0, DType.int32, host),
        ops.constant(int(bidirectional), DType.int32, host),
    ]
    values = [q_TNH, row_offsets, *_memory(pages), layer, *arguments]
    return ops.inplace_custom("graph_pipelines.paged_attention", q_TNH.device, values, [q_TNH.type])[0].tensor


def rotate_and_store(
    group: PageGroup,
    qkv: TensorValue,
    row_offsets: TensorValue,
    freqs_cis: TensorValue,
    position_ids: TensorValue,
    pages: PagedCacheValues,
    layer: TensorValue,
    num_heads: int,
    norms: HeadNorms | None = None,
) -> TensorValue:
    """Rotates queries and keys, stores keys and values, and returns the queries [T, num_heads, H].

    Args:
        group: The page group.
        qkv: Heads of queries, keys and values, [T, (num_heads + 2 * kv heads) * H]; with norms keys may be values too,
            [T, (num_heads + kv heads) * H].
        row_offsets: [B + 1].
        freqs_cis: The RoPE table [positions, H].
        position_ids: [1, T].
        pages: The cache.
        layer: Place of the layer in the page group, a uint32 on the host.
        num_heads: Number of query heads.
        norms: Norms that heads still need; on CPU alone.
    """
    if not qkv.device.is_cpu():
        assert norms is None
        q = rope_split_store_ragged(
            group.max_params,
            qkv,
            row_offsets,
            freqs_cis,
            pages,
            layer,
            num_heads,
            interleaved=False,
            position_ids=position_ids,
        )
        return q.reshape((-1, num_heads, group.head_dim))
    name = "graph_pipelines.rope_split_store" if norms is None else "graph_pipelines.norm_rope_split_store"
    values = [qkv, row_offsets, freqs_cis, position_ids, *_memory(pages), layer, *(norms.arguments() if norms else ())]
    q_type = TensorType(qkv.dtype, [qkv.shape[0], num_heads, group.head_dim], qkv.device)
    return ops.inplace_custom(name, qkv.device, values, [q_type])[0].tensor


def rotate(x_TNH: TensorValue, freqs_cis: TensorValue, position_ids: TensorValue) -> TensorValue:
    """Rotates heads, [T, N, H]."""
    if not x_TNH.device.is_cpu():
        return rope_ragged_with_position_ids(x_TNH, freqs_cis, position_ids, interleaved=False)
    values = [x_TNH, freqs_cis, position_ids]
    return ops.custom("graph_pipelines.rope", x_TNH.device, values, [x_TNH.type])[0].tensor


def _memory(pages: PagedCacheValues) -> list[object]:
    return [pages.kv_blocks, pages.lookup_table, pages.cache_lengths]
