"""The positions whose logits are returned, and the greedy choice at each."""

from __future__ import annotations

import math

from max.dtype import DType
from max.graph import DeviceRef, Dim, TensorValue, ops

from pipelines.pipeline_model import ReturnLogits


def select_positions(
    h_TD: TensorValue, row_offsets: TensorValue, return_n_logits: TensorValue, mode: ReturnLogits
) -> tuple[TensorValue, TensorValue]:
    """Selects the positions whose logits are returned: their hidden states [M, D], and their row offsets [B + 1].

    Args:
        h_TD: The hidden states of all positions.
        row_offsets: [B + 1] of the rows.
        return_n_logits: [1], for `VARIABLE`.
        mode: `LAST_TOKEN`: one position per row. `ALL`: every position. `VARIABLE`: the last return_n_logits of each
            row; a shorter row repeats its first position in front, so that all rows have equally many.
    """
    if mode == ReturnLogits.ALL:
        return h_TD, row_offsets
    starts, ends = (ops.cast(bound, DType.int64) for bound in (row_offsets[:-1], row_offsets[1:]))
    if mode == ReturnLogits.LAST_TOKEN:
        return ops.gather(h_TD, ends - 1, axis=0), _arange(row_offsets.shape[0], h_TD.device)
    back = ops.range(
        ops.cast(return_n_logits[0], DType.int64),
        ops.constant(0, DType.int64, DeviceRef.CPU()),
        ops.constant(-1, DType.int64, DeviceRef.CPU()),
        out_dim="return_n_logits",
        dtype=DType.int64,
        device=h_TD.device,
    )
    positions = ops.max(ops.unsqueeze(ends, 1) - ops.unsqueeze(back, 0), ops.unsqueeze(starts, 1))
    count = ops.cast(return_n_logits[0], DType.int64).to(h_TD.device)
    return ops.gather(h_TD, positions.reshape((-1,)), axis=0), _arange(row_offsets.shape[0], h_TD.device) * count


def _arange(dim: Dim, device: DeviceRef) -> TensorValue:
    """Numbers 0, 1, ... below the symbolic dimension, [dim] int64."""
    start = ops.constant(0, DType.int64, DeviceRef.CPU())
    return ops.range(start, TensorValue(dim), 1, out_dim=dim, dtype=DType.int64, device=device)


def last_of_each_row(logits_MV: TensorValue, logit_offsets: TensorValue) -> TensorValue:
    """Logits of each row's last position, [B, V]."""
    return ops.gather(logits_MV, ops.cast(logit_offsets[1:], DType.int64) - 1, axis=0)


def greedy_choice(logits_MV: TensorValue) -> tuple[TensorValue, TensorValue]:
    """Likeliest token of each position, [M] int64, and its logit [M], which is not finite if no token is likeliest.

    A plain maximum would ignore NaN: here it is infinite if there is one.
    """
    nan = ops.is_nan(logits_MV)
    largest = ops.max(ops.where(nan, ops.constant(math.inf, DType.float32, logits_MV.device), logits_MV), axis=-1)
    return ops.argmax(logits_MV, axis=-1).reshape((-1,)), largest.reshape((-1,))
