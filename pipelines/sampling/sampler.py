"""The sampler: from one row of logits to the next token, on the host.

Work on a whole row of 262,144 logits is slow: a cheap bound selects the few that are compared exactly.
Shape suffix: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.sampling.params import SamplingParams
from pipelines.sampling.processors import LogitsProcessor, logits_processors

# Below this the distribution is a single point, and float32 overflows.
_MIN_TEMPERATURE = 1e-6
_GROUP_SIZE = 512


class NoTokenLeftError(InputError):
    """Raised when a request's own masks leave no token that could be chosen."""


class Sampler:
    """Chooses the tokens of one request.

    It keeps the state of the request: its random numbers, and the tokens that its logits processors have seen. The
    state outlives a preemption, so that a request that is computed again has the same text. Parameters that are still
    open count as greedy: resolve them with the checkpoint's defaults before. constraint: a grammar's mask, which
    applies after all that the parameters ask for.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int] = (),
        eos_token_ids: Collection[int] = (),
        constraint: LogitsProcessor | None = None,
    ) -> None:
        _keep_freed_memory()
        self._params = params.resolved()
        self._random = np.random.default_rng(params.seed)
        self._processors = logits_processors(self._params, prompt, eos_token_ids)
        if constraint is not None:
            self._processors.append(constraint)

    def sample(self, logits_V: NDArray[np.float32]) -> int:
        """Chooses the next token. `logits_V` [V] is left as it is; at equal logits the greedy choice is the lowest id.

        Raises:
            FloatingPointError: The logits hold NaN or infinity, so that no token is likeliest.
            NoTokenLeftError: The request's masks leave no token with a finite logit.
        """
        processed_V = self._processed(logits_V)
        token = int(processed_V.argmax())
        if not np.isfinite(processed_V[token]):
            raise _no_choice(logits_V, processed_V)
        if self._params.temperature > 0.0:
            ids, weights = kept_tokens(processed_V, self._params)
            running = RunningSum(weights)
            # random() may be 0 but never 1; a target above 0 passes over weights of 0.
            chosen = running.first_reaching((1.0 - self._random.random()) * running.total)
            token = chosen if ids is None else int(ids[chosen])
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Takes a token that was chosen otherwise, as if it had been sampled; no random number is drawn."""
        for processor in self._processors:
            processor.accept(token)

    def _processed(self, logits_V: NDArray[np.float32]) -> NDArray[np.float32]:
        """Row after all processors: a copy if any of them changes it."""
        active = [processor for processor in self._processors if processor.is_active]
        if active:
            logits_V = logits_V.copy()
            for processor in active:
                processor.apply(logits_V)
        return logits_V


def _no_choice(logits_V: NDArray[np.float32], processed_V: NDArray[np.float32]) -> Exception:
    """Error for a processed row without a finite maximum: that of the masks if the model's own row has one."""
    if np.isneginf(processed_V.max()):
        if np.isfinite(logits_V.max()):
            return NoTokenLeftError(
                "no token is left to choose from: what the request allows (allowed_token_ids or a grammar) and what it "
                "forbids (stop tokens before min_tokens) leave none with a finite logit"
            )
        processed_V = logits_V
    token = int(processed_V.argmax())
    return FloatingPointError(f"the model answered with a logit of {processed_V[token]} for token {token}")


def _keep_freed_memory() -> None:
    """Makes glibc keep the memory of a row's arrays for the next row.

    By default it returns to the system, and its pages fault in again, which takes as long as all the work on them.
    Freeing a large block raises the threshold for the whole process (mallopt(3), M_MMAP_THRESHOLD).
    """
    np.empty(6 * 2**20, np.float32)


def kept_tokens(
    logits_V: NDArray[np.float32], params: SamplingParams
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
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
    weights = logits - logits.max()
    weights /= max(cuts.temperature, _MIN_TEMPERATURE)
    np.exp(weights, out=weights)
    if is_top is not None:
        weights *= is_top
    if cuts.top_p < 1.0:
        weights *= _is_in_top_p(weights, cuts.top_p)
    if cuts.min_p > 0.0:
        weights *= weights >= cuts.min_p
    return ids, weights


def kth_largest(logits_V: NDArray[np.float32], k: int) -> np.float32:
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


def _those_if_few(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    return values[mask] if _are_few(mask) else values


def _is_in_top_p(weights: NDArray[np.float32], top_p: float) -> NDArray[np.bool_]:
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

    def __init__(self, weights: NDArray[np.float32]) -> None:
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
