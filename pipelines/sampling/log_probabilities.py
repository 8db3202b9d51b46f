"""Log-probabilities of the tokens chosen, and of those that could have been."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.sampling.sampler import kth_largest


@dataclass(frozen=True)
class TokenLogProbs:
    """One chosen token and the likeliest tokens at its position, likeliest first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def log_probabilities(logits_V: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogProbs:
    """The log-softmax of the model's own logits [V], before temperature, penalties or any cut.

    Of tokens equally likely the lowest ids come first.
    """
    peak = float(logits_V.max())
    log_total = peak + float(np.log(np.exp(logits_V - peak).sum(dtype=np.float64)))
    top: list[int] = []
    if num_top > 0:
        ids = np.flatnonzero(logits_V >= kth_largest(logits_V, min(num_top, len(logits_V))))
        top = ids[np.argsort(-logits_V[ids], kind="stable")][:num_top].tolist()
    return TokenLogProbs(
        token_id=token_id,
        logprob=float(logits_V[token_id]) - log_total,
        top=tuple((token, float(logits_V[token]) - log_total) for token in top),
    )


class LogProbabilitiesMixin:
    """For pipeline models that answer with the log-probabilities of their tokens."""

    def compute_log_probabilities(
        self, next_token_logits_BV: NDArray[np.float32], next_tokens: Sequence[int], num_top: Sequence[int | None]
    ) -> list[TokenLogProbs | None]:
        """For each row of [B, V] logits its token's log-probability and the `num_top` likeliest; None: not asked."""
        rows = zip(next_token_logits_BV, next_tokens, num_top, strict=True)
        return [None if num is None else log_probabilities(row, token, num) for row, token, num in rows]
