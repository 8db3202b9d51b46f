"""The rows of a step as the device's sampler takes them: what is chosen from each, and the arrays that say so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.sampling.changes import LogitChanges, Packed
from pipelines.sampling.device.graphs import NUM_PARAMS
from pipelines.sampling.native import Cuts
from pipelines.sampling.sampler import Sampler

GREEDY = Cuts(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
_FIRST_OF_KEPT = math.nextafter(1.0, 0.0)


@dataclass(frozen=True)
class DeviceRow:
    """The choice to make from one row of logits; by default the likeliest token of the model's own.

    uniform: the random number of the choice, in [0, 1). changes: those to the logits; None: none. num_top: log
    probabilities of the chosen token and so many of the likeliest; None: none. error: why no token can be chosen.
    """

    cuts: Cuts = GREEDY
    uniform: float = 0.0
    changes: LogitChanges | None = None
    num_top: int | None = None
    error: Exception | None = None

    @classmethod
    def of(cls, sampler: Sampler, vocab_size: int, num_top: int | None = None) -> DeviceRow:
        """Describes the next choice of a request's sampler, which `Sampler.take` makes count; raises nothing."""
        try:
            changes = sampler.changes(vocab_size)
        except Exception as error:
            return cls(num_top=num_top, error=error)
        return cls(sampler.cuts, sampler.next_uniform(), changes, num_top)


@dataclass(frozen=True)
class Sampling:
    """The inputs of the graph `sample` after the logits, but for the number of passes: [B, C], and who needs passes."""

    params_BC: NDArray[np.float64]
    has_top_k: bool
    has_top_p: bool


def sampling_of(rows: Sequence[DeviceRow], vocab_size: int) -> Sampling | None:
    """The parameters of rows; None if no choice is random.

    A greedy row beside others draws, from all tokens with its largest logit, the one that the running sum reaches
    first.
    """
    if all(row.cuts.temperature == 0.0 for row in rows):
        return None
    params = np.empty((len(rows), NUM_PARAMS))
    for i, row in enumerate(rows):
        temperature, top_k, top_p, min_p = row.cuts
        if temperature == 0.0:
            params[i] = 1.0, 1, math.inf, 0.0, _FIRST_OF_KEPT
        else:
            cuts = top_k if 0 < top_k < vocab_size else math.inf, top_p if top_p < 1.0 else math.inf, min_p
            params[i] = temperature, *cuts, row.uniform
    is_cut_BC = np.isfinite(params[:, 1:3])
    return Sampling(params, bool(is_cut_BC[:, 0].any()), bool(is_cut_BC[:, 1].any()))


@dataclass(frozen=True)
class Changes:
    """The inputs of the graph `process` after the logits, in their order and by their names."""

    repetition_B: NDArray[np.float32]
    masks_MW: Packed
    seen_B: NDArray[np.int64]
    allowed_B: NDArray[np.int64]
    edits_E2: NDArray[np.int64]
    amounts_E3: NDArray[np.float64]


def changes_of(rows: Sequence[DeviceRow], num_bytes: int) -> Changes | None:
    """The changes to the logits of rows; None if there are none.

    The first two masks are those of rows without one: no token, and every token.
    """
    changed = [(i, row.changes) for i, row in enumerate(rows) if row.changes is not None]
    if not changed:
        return None
    masks: list[Packed] = [np.zeros(num_bytes, np.uint8), np.full(num_bytes, 0xFF, np.uint8)]
    repetition_B = np.ones(len(rows), np.float32)
    seen_B, allowed_B = np.zeros(len(rows), np.int64), np.ones(len(rows), np.int64)
    for i, changes in changed:
        repetition_B[i] = changes.repetition_penalty
        for numbers_B, mask in ((seen_B, changes.seen), (allowed_B, changes.allowed)):
            if mask is not None:
                numbers_B[i] = len(masks)
                masks.append(mask)
    return Changes(repetition_B, np.stack(masks), seen_B, allowed_B, *_edits(changed))


def _edits(changed: Sequence[tuple[int, LogitChanges]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows and tokens of all edits, [E, 2], and their amounts, [E, 3]; at least one edit, which may change nothing."""
    edits = [(i, changes.edits) for i, changes in changed]
    edits_E2 = np.empty((sum(len(edit.ids) for _, edit in edits), 2), np.int64)
    if not len(edits_E2):
        return np.zeros((1, 2), np.int64), np.zeros((1, 3))
    edits_E2[:, 0] = np.repeat([i for i, _ in edits], [len(edit.ids) for _, edit in edits])
    edits_E2[:, 1] = np.concatenate([edit.ids for _, edit in edits])
    return edits_E2, np.concatenate([edit.amounts for _, edit in edits])
