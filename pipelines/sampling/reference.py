"""The reference of the sampler, in numpy: what `pipelines/native/sampling.mojo` computes, a row at a time.

Tests compare the two, and benchmarks/sampling.py measures both. Shape suffix: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipelines.sampling.params import ResolvedSamplingParams, SamplingParams

MIN_TEMPERATURE = 1e-6
"""Below this the distribution is a single point, and float32 overflows."""
_MIN_EXPONENT = -87.0
_GROUP_SIZE = 512

Row = NDArray[np.float32]
Exp = Callable[[Row], Row]


def draw(logits_V: Row, params: ResolvedSamplingParams, uniform: float, exp: Exp = np.exp) -> int:
    """Draws a token by a random number in [0, 1)."""
    ids, weights = kept_tokens(logits_V, params, exp)
    running = RunningSum(weights)
    # The number may be 0 but never 1; a target above 0 passes over weights of 0.
    chosen = running.first_reaching((1.0 - uniform) * running.total)
    return chosen if ids is None else int(ids[chosen])


def log_total(logits_V: Row) -> float:
    """Computes the logarithm of the sum of e ** logit."""
    peak = float(logits_V.max())
    return peak + float(np.log(np.exp(logits_V - peak).sum(dtype=np.float64)))


def top_ids(logits_V: Row, num_top: int) -> list[int]:
    """Finds the ids of the largest logits, largest first, and among equals lowest first."""
    ids = np.flatnonzero(logits_V >= kth_largest(logits_V, num_top))
    top: list[int] = ids[np.argsort(-logits_V[ids], kind="stable")][:num_top].tolist()
    return top


def kept_tokens(
    logits_V: Row, params: SamplingParams | ResolvedSamplingParams, exp: Exp = np.exp
) -> tuple[NDArray[np.int64] | None, Row]:
    """Cuts a row by temperature, top-k, top-p and min-p.

    As in transformers' logits processors, top-k keeps all that equal the k-th, and top-p keeps the smallest set that
    reaches its mass; among equals it keeps the lowest ids.

    Returns:
        The token ids (None: all of V), and their weights: probabilities times a constant, 0 for those not kept.
    """
    cuts = params.resolved()
    ids, is_top, logits = None, None, logits_V
    if 0 < cuts.top_k < len(logits_V):
        is_top = logits_V >= kth_largest(logits_V, cuts.top_k)
        if _are_few(is_top):
            ids, is_top = np.flatnonzero(is_top), None
            logits = logits_V[ids]
    weights = scaled_weights(logits, cuts.temperature, exp)
    if is_top is not None:
        weights *= is_top
    if cuts.top_p < 1.0:
        weights *= _is_in_top_p(weights, cuts.top_p)
    if cuts.min_p > 0.0:
        weights *= weights >= cuts.min_p
    return ids, weights


def scaled_weights(logits: Row, temperature: float, exp: Exp = np.exp) -> Row:
    """Computes e ** ((logit - largest) / temperature), 0 where that is no more than 2 ** -125."""
    exponents = logits - logits.max()
    exponents /= max(temperature, MIN_TEMPERATURE)
    return exp(exponents) * (exponents >= _MIN_EXPONENT)


def kth_largest(logits_V: Row, k: int) -> np.float32:
    """Finds the k-th largest logit, 1 <= k <= V."""
    num_groups = max(2048, 4 * k)
    candidates = logits_V
    if num_groups <= len(logits_V) // 4:
        # Each of the k best groups has a logit as large as the k-th best group's maximum: the k-th isn't below it.
        grouped = logits_V[: len(logits_V) // num_groups * num_groups].reshape(-1, num_groups)
        candidates = _those_if_few(logits_V, logits_V >= np.partition(grouped.max(axis=0), -k)[-k])
    largest: np.float32 = np.partition(candidates, -k)[-k]
    return largest


def _are_few(mask: NDArray[np.bool_]) -> bool:
    """Whether so few are marked that copying them is worth it: copying half of a row takes longer than sorting it."""
    return bool(np.count_nonzero(mask) < len(mask) // 16)


def _those_if_few(values: Row, mask: NDArray[np.bool_]) -> Row:
    return values[mask] if _are_few(mask) else values


def _is_in_top_p(weights: Row, top_p: float) -> NDArray[np.bool_]:
    """Whether each weight is one of the largest that are needed to reach the share `top_p` of the sum."""
    total = float(weights.sum(dtype=np.float64))
    # Those below the bound have less than 1 - top_p together: none of them is kept, and none needs sorting.
    heavy = _those_if_few(weights, weights >= (1.0 - top_p) * total / len(weights))
    descending = np.sort(heavy)[::-1]
    last = RunningSum(descending).first_reaching(top_p * total)
    is_kept: NDArray[np.bool_] = weights >= descending[last]
    num_surplus = np.count_nonzero(is_kept) - (last + 1)
    if num_surplus:
        is_kept[np.flatnonzero(weights == descending[last])[-num_surplus:]] = False
    return is_kept


class RunningSum:
    """Running sums of weights, in float64.

    They are kept by groups, since a running sum of a whole row takes longer than all other work.
    """

    def __init__(self, weights: Row) -> None:
        self._weights = weights
        starts = np.arange(0, len(weights), _GROUP_SIZE)
        self._group_ends = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
        self.total = float(self._group_ends[-1])

    def first_reaching(self, target: float) -> int:
        """Index of the first sum that is `target` or more, 0 < target <= total; correct in spite of roundings."""
        group = int(np.searchsorted(self._group_ends, min(target, self.total)))
        start = group * _GROUP_SIZE
        inside = np.cumsum(self._weights[start : start + _GROUP_SIZE], dtype=np.float64)
        missing = target - (self._group_ends[group - 1] if group else 0.0)
        return start + int(np.searchsorted(inside, min(missing, inside[-1])))
