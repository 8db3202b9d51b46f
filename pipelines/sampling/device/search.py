"""Bounds and places within rows of a vocabulary, found by counting and adding alone.

No sort, and no result that the order of equal numbers could change. A row is seen as groups: one reduction has enough
to do on every core, and a running sum is one over the groups and one within a single group. Shape suffixes: B rows,
G groups, S tokens of a group, J trials, N any number; a row's scalar is [B, 1, 1].

Comparisons have the shape of what they are applied to. On the CPU, MAX 26.7 takes the first row's result for all rows
where operands that broadcast to each other, [G, 1] and [B, 1, 1], are compared and the result is broadcast again within
a reduction, over [B, G, S]. Tests compare batches, where it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from max.dtype import DType
from max.graph import DeviceRef, TensorValue, ops

Measure = Callable[[TensorValue, TensorValue], TensorValue]
"""What numbers [B, 1, G, S] add, float64, where they are marked [B, J, G, S]."""

BITS_PER_PASS = 2
"""More of them are fewer passes over the row, each of which reads it once for every trial."""
_BASE = 1 << BITS_PER_PASS
_MANTISSA = 1 << 23
_LARGEST_EXPONENT = 256


def constant(value: object, dtype: DType, device: DeviceRef) -> TensorValue:
    """Places numbers on the device as a constant."""
    return ops.constant(np.asarray(value, dtype.to_numpy()), dtype, device)


def iota(count: int, device: DeviceRef) -> TensorValue:
    """Numbers 0 to count - 1, [count] int32."""
    return ops.range(0, count, 1, out_dim=count, dtype=DType.int32, device=device)


def group_size(vocab_size: int) -> int:
    """Tokens of a group: the power of two for which a row has about as many groups."""
    return 1 << max(3, (vocab_size - 1).bit_length() + 1 >> 1)


def grouped(logits_BV: TensorValue) -> TensorValue:
    """Views rows as groups, [B, G, S]; the last group is filled up with minus infinity."""
    num_rows, vocab_size = logits_BV.shape[0], int(logits_BV.shape[1])
    size = group_size(vocab_size)
    num_groups = -(-vocab_size // size)
    if num_missing := num_groups * size - vocab_size:
        filler = constant(-np.inf, DType.float32, logits_BV.device)
        logits_BV = ops.concat([logits_BV, ops.broadcast_to(filler, [num_rows, num_missing])], axis=1)
    return ops.reshape(logits_BV, [num_rows, num_groups, size])


def group_ids(x_BGS: TensorValue) -> TensorValue:
    """Token ids of the places of a row, [G, S] int32."""
    num_groups, size = int(x_BGS.shape[1]), int(x_BGS.shape[2])
    return ops.reshape(iota(num_groups * size, x_BGS.device), [num_groups, size])


def row_sum(x_BGS: TensorValue) -> TensorValue:
    """Sum of a row in float64, [B, 1, 1]."""
    return ops.sum(ops.sum(ops.cast(x_BGS, DType.float64), axis=2), axis=1)


def row_max(x_BGS: TensorValue) -> TensorValue:
    """Largest number of a row, [B, 1, 1]."""
    return ops.max(ops.max(x_BGS, axis=2), axis=1)


def peak(x_BGS: TensorValue) -> TensorValue:
    """Largest logit of a row, [B, 1, 1]: infinite if one is NaN, the lowest float32 if all are minus infinity."""
    return row_max(ops.where(ops.is_nan(x_BGS), constant(np.inf, DType.float32, x_BGS.device), x_BGS))


def lowest_id(marks_BGS: TensorValue) -> TensorValue:
    """Lowest id that is marked by 1 and not by 0, [B, 1, 1] int32; one past the row if there is none.

    `ops.argmax` may return any of equal ones on a GPU.
    """
    num_places = int(marks_BGS.shape[1]) * int(marks_BGS.shape[2])
    return num_places - row_max(ops.cast(marks_BGS, DType.int32) * (num_places - group_ids(marks_BGS)))


def count(x: TensorValue, is_marked: TensorValue) -> TensorValue:
    """The measure by which numbers are counted."""
    return ops.cast(is_marked, DType.float64)


def mass(x: TensorValue, is_marked: TensorValue) -> TensorValue:
    """The measure by which finite numbers are added up."""
    return ops.cast(x * ops.cast(is_marked, DType.float32), DType.float64)


def largest_bound(
    x_BGS: TensorValue, measure: Measure, needed_B11: TensorValue, num_passes: TensorValue, is_signed: bool
) -> TensorValue:
    """The largest float32 such that the numbers from it on measure at least `needed`, [B, 1, 1].

    It is found from the highest bits of its key down, and equals one of the row's numbers, since the measure changes
    nowhere else.

    Args:
        x_BGS: Numbers of a row, minus infinity but not NaN among them.
        measure: What they add; never less for more of them.
        needed_B11: Above 0, float64; infinite, or more than all measure: the bound is the lowest.
        num_passes: How many passes to make, int32 on the host: `num_passes_of`, or 0 for the lowest bound in all rows.
        is_signed: Whether the lowest bound is minus infinity; otherwise it is 0, and no number is below.
    """
    device, num_rows = x_BGS.device, x_BGS.shape[0]
    digits_1J11 = constant(np.arange(1, _BASE).reshape(1, -1, 1, 1), DType.int64, device)
    first = constant([[[[-(2**31) if is_signed else 0]]]], DType.int64, device)
    key_B111 = ops.broadcast_to(first, [num_rows, 1, 1, 1])
    step = constant(_BASE ** (num_passes_of(is_signed) - 1), DType.int64, device)

    def next_digit(
        key_B111: TensorValue,
        step: TensorValue,
        trials_BJ11: TensorValue,
        x_B1GS: TensorValue,
        needed_B11: TensorValue,
    ) -> list[TensorValue]:
        measured_BJG1 = ops.sum(measure(x_B1GS, ops.greater_equal(x_B1GS, trials_BJ11)), axis=3)
        measured_BJ1 = ops.squeeze(ops.sum(measured_BJG1, axis=2), 3)
        is_enough_BJ11 = ops.cast(ops.unsqueeze(ops.greater_equal(measured_BJ1, needed_B11), 3), DType.int64)
        key_B111 = key_B111 + ops.max(is_enough_BJ11 * digits_1J11, axis=1) * step
        step = step // _BASE
        return [key_B111, step, value_of(key_B111 + digits_1J11 * step), x_B1GS, needed_B11]

    trials_BJ11 = value_of(key_B111 + digits_1J11 * step)
    state = [key_B111, step, trials_BJ11, ops.unsqueeze(x_BGS, 1), needed_B11]
    return ops.squeeze(value_of(repeat(num_passes, next_digit, state)[0]), 1)


def repeat(
    num_passes: TensorValue, body: Callable[..., list[TensorValue]], state: Sequence[TensorValue]
) -> list[TensorValue]:
    """The state after so many passes of the body, a number on the host: it waits for no result of the device.

    Whatever a pass works on is in the state, changed or not: MAX does not find the sizes of what a body closes over.
    """

    def has_passes(num_left: TensorValue, *_: TensorValue) -> TensorValue:
        return num_left > 0

    def next_pass(num_left: TensorValue, *state: TensorValue) -> list[TensorValue]:
        return [num_left - 1, *body(*state)]

    return ops.while_loop([num_passes, *state], has_passes, next_pass)[1:]


def num_passes_of(is_signed: bool) -> int:
    """Passes that find a bound: of all float32 numbers, or of those from 0 to below 2."""
    return -(-(32 if is_signed else 30) // BITS_PER_PASS)


def value_of(key: TensorValue) -> TensorValue:
    """The float32 number of a key, int64: keys order numbers as they are, 0 is that of 0, and 1 of 2 ** -126.

    Keys past the largest number are infinite. Numbers below the normal ones have none: hardware takes them for 0.
    """
    scales = np.zeros(_LARGEST_EXPONENT + 1, np.float32)
    scales[1:255] = 2.0 ** np.arange(-126, 128)
    scales[255:] = np.inf
    zero, one = (constant(number, DType.int64, key.device) for number in (0, 1))
    bits = ops.max(key, -key) + (_MANTISSA - 1)
    exponent = bits // _MANTISSA
    mantissa = ops.cast(bits - exponent * _MANTISSA + _MANTISSA, DType.float32) * (1.0 / _MANTISSA)
    magnitude = ops.gather(constant(scales, DType.float32, key.device), exponent, axis=0) * mantissa
    return magnitude * ops.cast(one + 2 * ops.max(ops.min(key, zero), -one), DType.float32)


def first_reaching(values_BGS: TensorValue, target_B11: TensorValue) -> TensorValue:
    """The first id up to which values, none negative, add up to the target, [B, 1, 1] int32.

    The values up to it add up to all of the row if the target is above that. It is never a place of value 0, unless
    the target is.
    """
    sums_BG = ops.squeeze(ops.sum(ops.cast(values_BGS, DType.float64), axis=2), 2)
    group_B1, before_B1 = _locate(sums_BG, ops.squeeze(target_B11, 2))
    inside_BS = ops.gather_nd(values_BGS, ops.cast(group_B1, DType.int64), batch_dims=1)
    place_B1, _ = _locate(ops.cast(inside_BS, DType.float64), ops.squeeze(target_B11, 2) - before_B1)
    return ops.unsqueeze(group_B1 * int(values_BGS.shape[2]) + place_B1, 2)


def _locate(values_BN: TensorValue, target_B1: TensorValue) -> tuple[TensorValue, TensorValue]:
    """The first index of a running sum that reaches the target [B, 1] int32, and the sum before it [B, 1]."""
    size, device = int(values_BN.shape[1]), values_BN.device
    is_earlier_NN = constant(np.tri(size), DType.float64, device)
    running_BN = ops.squeeze(ops.sum(ops.unsqueeze(values_BN, 1) * is_earlier_NN, axis=2), 2)
    is_below_BN = ops.greater(ops.min(target_B1, running_BN[:, -1:]), running_BN)
    before_B1 = ops.max(ops.cast(is_below_BN, DType.float64) * running_BN, axis=1)
    return ops.sum(ops.cast(is_below_BN, DType.int32), axis=1), before_B1
