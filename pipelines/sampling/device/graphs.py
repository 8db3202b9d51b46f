"""The graphs of the sampler: logits in, tokens and log probabilities out.

`process` changes the logits, `greedy` or `sample` chooses the tokens, `log_probabilities` looks at the model's own
logits, and `insert` hands tokens on to the next step: a step runs those that its rows need. Shape suffixes: B rows,
V vocabulary, M masks, W bytes of a mask, E edits, R some of the rows, C columns, T tokens of a step, N likeliest
tokens; those of search.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
from max.dtype import DType
from max.graph import DeviceRef, Graph, Module, TensorType, TensorValue, ops

from pipelines.sampling.device.search import (
    constant,
    count,
    first_reaching,
    group_ids,
    grouped,
    iota,
    largest_bound,
    lowest_id,
    mass,
    peak,
    repeat,
    row_max,
    row_sum,
)

SAMPLER = "sampler"
"""Name of the module of these graphs, which is kept beside the graphs of a model."""
ROW_COPIES = 8
"""Rows of float32 that are alive together: those of `sample`, and the logits that the next step computes meanwhile."""
MAX_TOP = 20
"""Most likeliest tokens that are listed beside a log probability."""
_MIN_EXPONENT = -87.0

Outputs = tuple[TensorValue, ...]


class RowParams(NamedTuple):
    """Columns of the parameters [B, C] float64, each [B, 1, 1].

    temperature: above 0. top_k, top_p: infinite for all. uniform: in [0, 1).
    """

    temperature: TensorValue
    top_k: TensorValue
    top_p: TensorValue
    min_p: TensorValue
    uniform: TensorValue

    @classmethod
    def of(cls, params_BC: TensorValue) -> Self:
        """Splits the columns."""
        num_rows = params_BC.shape[0]
        return cls(*(ops.reshape(params_BC[:, i], [num_rows, 1, 1]) for i in range(NUM_PARAMS)))


NUM_PARAMS = len(RowParams._fields)


def sampler_bytes(vocab_size: int, num_rows: int) -> int:
    """Estimates the bytes that the sampler takes on its device."""
    return ROW_COPIES * 4 * vocab_size * num_rows


def build_graphs(vocab_size: int, device: DeviceRef) -> Graph:
    """Builds all graphs in one module, where most of a compilation is done once for all of them.

    Returns:
        One of them: the compiler takes the whole module with it.
    """
    host = DeviceRef.CPU()
    logits = TensorType(DType.float32, ["batch_size", vocab_size], device)
    params = TensorType(DType.float64, ["batch_size", NUM_PARAMS], device)
    masks = TensorType(DType.uint8, ["num_masks", -(-vocab_size // 8)], device)
    edits = [TensorType(DType.int64, ["num_edits", 2], device), TensorType(DType.float64, ["num_edits", 3], device)]
    repetitions = TensorType(DType.float32, ["batch_size"], device)
    names = "batch_size", "num_rows", "total_seq_len"
    tokens, rows, step_tokens = (TensorType(DType.int64, [name], device) for name in names)
    num = TensorType(DType.int32, [], host)
    builders: dict[str, tuple[Callable[..., Outputs], list[TensorType]]] = {
        "process": (process, [logits, repetitions, masks, tokens, tokens, *edits]),
        "greedy": (greedy, [logits]),
        "sample": (sample, [logits, params, num, num]),
        "log_probabilities": (log_probabilities, [logits, tokens, rows, num]),
        "insert": (insert, [step_tokens, tokens, rows, rows]),
    }
    module = Module()
    for name, (build, types) in builders.items():
        with Graph(name, input_types=types, module=module) as graph:
            graph.output(*build(*(value.tensor for value in graph.inputs)))
    return graph


def process(
    logits_BV: TensorValue,
    repetition_B: TensorValue,
    masks_MW: TensorValue,
    seen_B: TensorValue,
    allowed_B: TensorValue,
    edits_E2: TensorValue,
    amounts_E3: TensorValue,
) -> Outputs:
    """Applies penalties, biases and masks in the order of the host's processors.

    Args:
        logits_BV: The model's logits.
        repetition_B: The repetition penalties, 1 for none.
        masks_MW: Sets of tokens, packed, lowest bit first.
        seen_B: For each row the number of the set that its repetition penalty applies to.
        allowed_B: The number of the set that may be chosen; others become minus infinity, but NaN stays.
        edits_E2: Row and token of each edit, no pair twice with different amounts.
        amounts_E3: What the frequency and the presence of the token subtract, and the bias.
    """
    zero = constant(0.0, DType.float32, logits_BV.device)
    # In float64, since a division by a number of the row may be a product with its rounded inverse.
    wide_BV, factor_B1 = ops.cast(logits_BV, DType.float64), ops.cast(ops.unsqueeze(repetition_B, 1), DType.float64)
    changed_BV = ops.where(ops.greater(zero, logits_BV), wide_BV * factor_B1, wide_BV / factor_B1)
    is_seen_BV = _unpacked(masks_MW, seen_B, logits_BV)
    penalized_BV = ops.where(is_seen_BV, ops.cast(changed_BV, DType.float32), logits_BV)
    frequency, presence, bias = (amounts_E3[:, i] for i in range(3))
    edited = ops.gather_nd(penalized_BV, edits_E2) - ops.cast(frequency, DType.float32)
    edited = ops.cast(ops.cast(edited, DType.float64) - presence, DType.float32) + ops.cast(bias, DType.float32)
    edited_BV = ops.scatter_nd(penalized_BV, edited, edits_E2)
    is_left = ops.logical_or(_unpacked(masks_MW, allowed_B, logits_BV), ops.is_nan(edited_BV))
    return (ops.where(is_left, edited_BV, constant(-np.inf, DType.float32, logits_BV.device)),)


def _unpacked(masks_MW: TensorValue, numbers_B: TensorValue, like_BV: TensorValue) -> TensorValue:
    """The bits of the sets of these numbers, [B, V] bool."""
    bytes_BW = ops.gather(masks_MW, numbers_B, axis=0)
    num_rows, num_bytes = bytes_BW.shape[0], int(bytes_BW.shape[1])
    powers = constant([1 << bit for bit in range(8)], DType.uint32, masks_MW.device)
    shifted = ops.cast(ops.unsqueeze(bytes_BW, 2), DType.uint32) // powers
    bits = ops.reshape(shifted - shifted // 2 * 2, [num_rows, 8 * num_bytes])
    return ops.greater(bits[:, : int(like_BV.shape[1])], constant(0, DType.uint32, masks_MW.device))


def greedy(logits_BV: TensorValue) -> Outputs:
    """The likeliest tokens [B] int64, lowest ids first, and the report [B, 2] float64 of tokens and their logits."""
    x_BGS = grouped(logits_BV)
    peak_B11 = peak(x_BGS)
    return _chosen(lowest_id(_marks(ops.equal(x_BGS, peak_B11))), peak_B11, int(logits_BV.shape[1]))


def _chosen(ids_B11: TensorValue, peak_B11: TensorValue, vocab_size: int) -> Outputs:
    """The outputs of a choice. A row without an answer has some token, so that the next step can run."""
    last = constant(vocab_size - 1, DType.int32, ids_B11.device)
    tokens_B = ops.reshape(ops.cast(ops.min(ids_B11, last), DType.int64), [ids_B11.shape[0]])
    peaks_B = ops.reshape(ops.cast(peak_B11, DType.float64), [ids_B11.shape[0]])
    return tokens_B, ops.stack([ops.cast(tokens_B, DType.float64), peaks_B], axis=1)


def sample(
    logits_BV: TensorValue, params_BC: TensorValue, num_top_k_passes: TensorValue, num_top_p_passes: TensorValue
) -> Outputs:
    """Draws tokens after the cuts; outputs as those of `greedy`.

    Top-k keeps all that equal the k-th largest logit; top-p the smallest set that reaches its share, of equal weights
    those of the lowest ids.

    Args:
        logits_BV: The logits.
        params_BC: The columns of RowParams.
        num_top_k_passes, num_top_p_passes: Of the searches for the bounds; 0 where no row has the cut.
    """
    x_BGS, params = grouped(logits_BV), RowParams.of(params_BC)
    peak_B11 = peak(x_BGS)
    kth_B11 = largest_bound(x_BGS, count, params.top_k, num_top_k_passes, is_signed=True)
    weights_BGS = _weights(x_BGS, peak_B11, params) * _marks(ops.greater_equal(x_BGS, kth_B11))
    target_B11 = row_sum(weights_BGS) * params.top_p
    bound_B11 = largest_bound(weights_BGS, mass, target_B11, num_top_p_passes, is_signed=False)
    above_BGS = weights_BGS * _marks(ops.greater(weights_BGS, bound_B11))
    equal_BGS = weights_BGS * _marks(ops.equal(weights_BGS, bound_B11))
    last_B11 = first_reaching(equal_BGS, target_B11 - row_sum(above_BGS))
    kept_BGS = above_BGS + equal_BGS * _marks(ops.greater_equal(last_B11, group_ids(x_BGS)))
    kept_BGS = kept_BGS * _marks(ops.greater_equal(weights_BGS, ops.cast(params.min_p, DType.float32)))
    # The number may be 0 but never 1; a target above 0 passes over weights of 0.
    drawn_B11 = first_reaching(kept_BGS, row_sum(kept_BGS) * (1.0 - params.uniform))
    return _chosen(drawn_B11, peak_B11, int(logits_BV.shape[1]))


def _weights(x_BGS: TensorValue, peak_B11: TensorValue, params: RowParams) -> TensorValue:
    """Probabilities times a constant of the row: 1 for the largest logit."""
    exponents = (x_BGS - peak_B11) / ops.cast(params.temperature, DType.float32)
    return ops.exp(exponents) * _marks(ops.greater_equal(exponents, _MIN_EXPONENT))


def _marks(is_marked: TensorValue) -> TensorValue:
    """Factors of 1 where it is true, and 0."""
    return ops.cast(is_marked, DType.float32)


def log_probabilities(
    logits_BV: TensorValue, tokens_B: TensorValue, rows_R: TensorValue, num_top: TensorValue
) -> Outputs:
    """Reports the log-softmax of some rows.

    Args:
        logits_BV: The model's own logits.
        tokens_B: The chosen tokens.
        rows_R: The rows that are wanted.
        num_top: How many of the likeliest tokens are wanted, int32 on the host, up to MAX_TOP.

    Returns:
        Per row, float64: the largest logit, the sum of e ** (logit - largest), the chosen token's logit, then ids and
        logits of the MAX_TOP likeliest tokens, lowest ids first among equals; zeros past `num_top`.
    """
    logits_RV = ops.gather(logits_BV, rows_R, axis=0)
    x_RGS = grouped(logits_RV)
    peak_R11 = peak(x_RGS)
    total_R11 = row_sum(ops.exp(x_RGS - peak_R11))
    token_R1 = ops.unsqueeze(ops.gather(tokens_B, rows_R, axis=0), 1)
    chosen_R1 = ops.cast(ops.gather_nd(logits_RV, token_R1, batch_dims=1), DType.float64)
    columns = [ops.squeeze(ops.cast(column, DType.float64), 2) for column in (peak_R11, total_R11)]
    top = _top(x_RGS, num_top)
    return (ops.concat([*columns, ops.unsqueeze(chosen_R1, 1), *top], axis=1),)


def _top(x_RGS: TensorValue, num_top: TensorValue) -> list[TensorValue]:
    """Ids and logits of the likeliest tokens, each [R, N] float64: one with each pass, the largest after the last."""
    device, num_rows = x_RGS.device, x_RGS.shape[0]
    lowest = constant(np.finfo(np.float32).min, DType.float32, device)
    places_N = ops.cast(iota(MAX_TOP, device), DType.float64)
    none_RN = ops.broadcast_to(constant([[0.0]], DType.float64, device), [num_rows, MAX_TOP])
    place = constant(0.0, DType.float64, device)

    def next_largest(
        place: TensorValue,
        ids_RN: TensorValue,
        top_RN: TensorValue,
        last_id_R11: TensorValue,
        last_R11: TensorValue,
        x_RGS: TensorValue,
    ) -> list[TensorValue]:
        is_later_RGS = _marks(ops.greater(group_ids(x_RGS), last_id_R11)) * _marks(ops.equal(x_RGS, last_R11))
        left_RGS = is_later_RGS + _marks(ops.greater(last_R11, x_RGS))
        remaining_RGS = x_RGS * left_RGS + lowest * (1.0 - left_RGS)
        largest_R11 = row_max(remaining_RGS)
        id_R11 = lowest_id(_marks(ops.equal(remaining_RGS, largest_R11)) * left_RGS)
        is_place_N = ops.cast(ops.equal(places_N, place), DType.float64)
        found = (ops.squeeze(ops.cast(each, DType.float64), 2) for each in (id_R11, largest_R11))
        ids_RN, top_RN = (old + new * is_place_N for old, new in zip((ids_RN, top_RN), found, strict=True))
        return [place + 1.0, ids_RN, top_RN, id_R11, largest_R11, x_RGS]

    id_R11 = ops.broadcast_to(constant([[[0]]], DType.int32, device), [num_rows, 1, 1])
    last_R11 = ops.broadcast_to(constant([[[np.inf]]], DType.float32, device), [num_rows, 1, 1])
    state = [place, none_RN, none_RN, id_R11, last_R11, ops.max(x_RGS, lowest)]
    return repeat(num_top, next_largest, state)[1:3]


def insert(step_tokens_T: TensorValue, chosen_B: TensorValue, places_R: TensorValue, rows_R: TensorValue) -> Outputs:
    """Replaces the tokens of the next step at `places` by those chosen for `rows`."""
    return (ops.scatter_nd(step_tokens_T, ops.gather(chosen_B, rows_R, axis=0), ops.unsqueeze(places_R, 1)),)
