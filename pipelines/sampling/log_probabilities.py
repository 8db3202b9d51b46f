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
    """A token's log probability, and the likeliest tokens at its position.

    top: token ids with their log probabilities, likeliest first; the token itself need not be among them. A token with
    a logit of minus infinity has a log probability of minus infinity.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def log_probabilities(logits_V: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogProbs:
    """Computes the log-softmax of the model's own logits [V], before temperature, penalties or any cut.

    Among equally likely tokens the lowest ids come first.

    Args:
        logits_V: The logits of one position.
        token_id: The token whose log probability is wanted.
        num_top: How many of the likeliest tokens are listed.

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

    It works row by row, so that only one row's worth of memory is needed beside the slab.

    Args:
        logits_TV: Logits of consecutive positions.
        next_tokens: For each row the token that follows its position. No row predicts a prompt's first token, and its
            last row predicts the output.
        num_top: As for `log_probabilities`.

    Raises:
        FloatingPointError: As `log_probabilities`.
    """
    return [log_probabilities(row, token, num_top) for row, token in zip(logits_TV, next_tokens, strict=True)]


class LogProbabilitiesMixin:
    """Computation of log probabilities for pipeline models that return them."""

    def compute_log_probabilities(
        self, next_token_logits_BV: NDArray[np.float32], next_tokens: Sequence[int], num_top: Sequence[int | None]
    ) -> list[TokenLogProbs | None]:
        """Computes each row's log probabilities from logits [B, V].

        Args:
            next_token_logits_BV: The logits of each row's last position.
            next_tokens: The token that was chosen for each row.
            num_top: For each row the number of likeliest tokens to list; None: no log probabilities.

        Returns:
            One entry per row; None where num_top is None.

        Raises:
            FloatingPointError: As `log_probabilities`.
        """
        rows = zip(next_token_logits_BV, next_tokens, num_top, strict=True)
        return [None if num is None else log_probabilities(row, token, num) for row, token, num in rows]
