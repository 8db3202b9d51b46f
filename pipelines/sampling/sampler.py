"""From one row of logits to the next token, on the host.

Whole rows of 262,144 logits leave little time: only what survives a cheap bound is looked at closely.
Shape suffix: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.sampling.params import SamplingParams

# Below this the distribution is a point, and float32 runs out of range.
_MIN_TEMPERATURE = 1e-6
_GROUP_SIZE = 512


class Sampler:
    """Chooses the tokens of one request.

    Keeps what depends on the request's past: the random numbers and how often each token came. It outlives a
    preemption, so that a recomputed request goes on as if nothing had happened.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int] = (), eos_token_ids: Collection[int] = ()) -> None:
        _keep_freed_memory()
        self._params = params
        self._random = np.random.default_rng(params.seed)
        self._num_sampled = 0
        self._stop_ids = list(params.stop_ids(eos_token_ids))
        # How often a token was generated; those of the prompt count 0 times and matter to the repetition penalty only.
        self._counts = dict.fromkeys(prompt if params.repetition_penalty != 1.0 else (), 0)

    def sample(self, logits_V: NDArray[np.float32]) -> int:
        """The next token. `logits_V` [V] is left as it is; at equal logits the greedy choice is the lowest id.

        Raises:
            FloatingPointError: the logits hold NaN or infinity, so that no token is likeliest.
        """
        logits_V = self._adjusted(logits_V)
        token = int(logits_V.argmax())
        if not np.isfinite(logits_V[token]):
            raise FloatingPointError(f"the model answered with a logit of {logits_V[token]} for token {token}")
        if self._params.temperature > 0.0:
            ids, weights = kept_tokens(logits_V, self._params)
            running = RunningSum(weights)
            # random() may be 0 but never 1; a target above 0 passes over weights of 0.
            chosen = running.first_reaching((1.0 - self._random.random()) * running.total)
            token = chosen if ids is None else int(ids[chosen])
        self._num_sampled += 1
        if self._params.has_penalties:
            self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _adjusted(self, logits_V: NDArray[np.float32]) -> NDArray[np.float32]:
        """Penalties, and no end before min_tokens; a copy if anything changes."""
        must_go_on = self._num_sampled < self._params.min_tokens
        if not self._counts and not must_go_on:
            return logits_V
        logits_V = logits_V.copy()
        if self._counts:
            _penalize(logits_V, self._counts, self._params)
        if must_go_on:
            logits_V[[token for token in self._stop_ids if token < len(logits_V)]] = -np.inf
        return logits_V


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of a row's arrays for the next row.

    By default it goes back to the system, and its pages fault in again, which takes as long as all the work on them.
    Freeing something large raises the threshold for the whole process (mallopt(3), M_MMAP_THRESHOLD).
    """
    np.empty(6 * 2**20, np.float32)


def _penalize(logits_V: NDArray[np.float32], counts: dict[int, int], params: SamplingParams) -> None:
    """Change `logits_V` in place.

    Repetition as in transformers (RepetitionPenaltyLogitsProcessor), presence and frequency as in the OpenAI API.
    """
    ids = np.fromiter(counts.keys(), np.int64, len(counts))
    times = np.fromiter(counts.values(), np.float32, len(counts))
    seen = logits_V[ids]
    seen = np.where(seen < 0, seen * params.repetition_penalty, seen / params.repetition_penalty)
    logits_V[ids] = seen - params.frequency_penalty * times - params.presence_penalty * (times > 0)


def kept_tokens(
    logits_V: NDArray[np.float32], params: SamplingParams
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
    """What temperature, top-k, top-p and min-p leave: ids (None: all of V), and their weights, 0 for those not kept.

    Weights are probabilities times a constant. As in transformers' logits processors, top-k keeps all that equal the
    k-th, and top-p keeps the smallest set that reaches its mass; among equals it keeps the lowest ids.
    """
    ids, is_top = None, None
    logits = logits_V
    if 0 < params.top_k < len(logits_V):
        is_top = logits_V >= kth_largest(logits_V, params.top_k)
        if _are_few(is_top):
            ids, is_top = np.flatnonzero(is_top), None
            logits = logits_V[ids]
    weights = logits - logits.max()
    weights /= max(params.temperature, _MIN_TEMPERATURE)
    np.exp(weights, out=weights)
    if is_top is not None:
        weights *= is_top
    if params.top_p < 1.0:
        weights *= _is_in_top_p(weights, params.top_p)
    if params.min_p > 0.0:
        weights *= weights >= params.min_p
    return ids, weights


def kth_largest(logits_V: NDArray[np.float32], k: int) -> np.float32:
    """The k-th largest logit, 1 <= k <= V."""
    num_groups = max(2048, 4 * k)
    candidates = logits_V
    if num_groups <= len(logits_V) // 4:
        # Each of the k best groups has a logit as large as the k-th best group's maximum: the k-th isn't below it.
        grouped = logits_V[: len(logits_V) // num_groups * num_groups].reshape(-1, num_groups)
        candidates = _those_if_few(logits_V, logits_V >= np.partition(grouped.max(axis=0), -k)[-k])
    largest: np.float32 = np.partition(candidates, -k)[-k]
    return largest


def _are_few(mask: NDArray[np.bool_]) -> bool:
    """Whether they are worth copying out of their row: copying half of one takes longer than sorting all of it."""
    return bool(np.count_nonzero(mask) < len(mask) // 16)


def _those_if_few(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    return values[mask] if _are_few(mask) else values


def _is_in_top_p(weights: NDArray[np.float32], top_p: float) -> NDArray[np.bool_]:
    """Whether each weight is one of the largest that it takes to reach the share `top_p` of the sum."""
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
    """Sums of the first 1, 2, ... weights, in float64.

    In groups, since a running sum of a whole row takes longer than all else.
    """

    def __init__(self, weights: NDArray[np.float32]) -> None:
        self._weights = weights
        starts = np.arange(0, len(weights), _GROUP_SIZE)
        self._group_ends = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
        self.total = float(self._group_ends[-1])

    def first_reaching(self, target: float) -> int:
        """The first index at which the sum is `target` or more, 0 < target <= total, however sums were rounded."""
        group = int(np.searchsorted(self._group_ends, min(target, self.total)))
        start = group * _GROUP_SIZE
        inside = np.cumsum(self._weights[start : start + _GROUP_SIZE], dtype=np.float64)
        missing = target - (self._group_ends[group - 1] if group else 0.0)
        return start + int(np.searchsorted(inside, min(missing, inside[-1])))
