"""Log probabilities of tokens, and of the likeliest ones at their positions.

Shape suffixes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.sampling.sampler import kth_largest


@dataclass(frozen=True)
class TokenLogProbs:
    """A token's log probability and the likeliest tokens at its position, likeliest first; it need not be one of them.

    A token that the model gives no chance (a logit of minus infinity) has a log probability of minus infinity.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def log_probabilities(logits_V: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogProbs:
    """Computes the log-softmax of the model's own logits [V], before temperature, penalties or any cut.

    Of tokens equally likely the lowest ids come first.

    Raises:
        FloatingPointError: The logits hold NaN or infinity.
    """
    peak = float(logits_V.max())
    if not np.isfinite(peak):
        raise FloatingPointError(f"the model answered with a logit of {peak}: it has no log probabilities")
    weights = logits_V - peak
    np.exp(weights, out=weights)
    log_total = peak + float(np.log(weights.sum(dtype=np.float64)))
    top: list[int] = []
    if num_top > 0:
        ids = np.flatnonzero(logits_V >= kth_largest(logits_V, min(num_top, len(logits_V))))
        top = ids[np.argsort(-logits_V[ids], kind="stable")][:num_top].tolist()
    return TokenLogProbs(
        token_id=token_id,
        logprob=float(logits_V[token_id]) - log_total,
        top=tuple((token, float(logits_V[token]) - log_total) for token in top),
    )


def prompt_log_probabilities(
    logits_TV: NDArray[np.float32], next_tokens: Sequence[int], num_top: int
) -> list[TokenLogProbs]:
    """Computes the log probabilities of a prompt's tokens from a slab of logits [T, V].

    Goes row by row, so that only one row's worth of memory is needed beside the slab.

    next_tokens: For each row the token that follows its position, which its logits predict. A prompt's first token has
    no row, and its last row predicts the output.

    Raises:
        FloatingPointError: As `log_probabilities`.
    """
    return [log_probabilities(row, token, num_top) for row, token in zip(logits_TV, next_tokens, strict=True)]


class LogProbabilitiesMixin:
    """Log probabilities for pipeline models that answer with those of their tokens."""

    def compute_log_probabilities(
        self, next_token_logits_BV: NDArray[np.float32], next_tokens: Sequence[int], num_top: Sequence[int | None]
    ) -> list[TokenLogProbs | None]:
        """Computes each row's log probabilities from logits [B, V], with the `num_top` likeliest; None: not asked."""
        rows = zip(next_token_logits_BV, next_tokens, num_top, strict=True)
        return [None if num is None else log_probabilities(row, token, num) for row, token, num in rows]
