"""Log probabilities of tokens, and of the likeliest ones at their positions.

Shape suffixes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.sampling.native import LogSoftmax, log_softmax

Row = NDArray[np.float32]


@dataclass(frozen=True)
class TokenLogProbs:
    """A token's log probability, and the likeliest tokens at its position.

    top: token ids with their log probabilities, likeliest first; the token itself need not be among them. A token with
    a logit of minus infinity has a log probability of minus infinity.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def log_probabilities(logits_V: Row, token_id: int, num_top: int) -> TokenLogProbs:
    """Computes the log-softmax of the model's own logits [V], before temperature, penalties or any cut.

    Among equally likely tokens the lowest ids come first.

    Args:
        logits_V: The logits of one position.
        token_id: The token whose log probability is wanted.
        num_top: How many of the likeliest tokens are listed.

    Raises:
        FloatingPointError: The logits hold NaN or infinity.
    """
    return prompt_log_probabilities(logits_V[None], [token_id], num_top)[0]


def token_log_probs(logits_V: Row, token_id: int, softmax: LogSoftmax | FloatingPointError) -> TokenLogProbs:
    """Takes the log probabilities of a row from its log-softmax.

    Raises:
        FloatingPointError: There is none.
    """
    if isinstance(softmax, FloatingPointError):
        raise softmax
    top = zip(softmax.top_ids, (logits_V[softmax.top_ids].astype(np.float64) - softmax.log_total).tolist(), strict=True)
    return TokenLogProbs(token_id, float(logits_V[token_id]) - softmax.log_total, tuple(top))


def prompt_log_probabilities(
    logits_TV: NDArray[np.float32], next_tokens: Sequence[int], num_top: int
) -> list[TokenLogProbs]:
    """Computes the log probabilities of a prompt's tokens from a slab of logits [T, V].

    It needs a few rows' worth of memory for each core beside the slab.

    Args:
        logits_TV: Logits of consecutive positions.
        next_tokens: For each row the token that follows its position. No row predicts a prompt's first token, and its
            last row predicts the output.
        num_top: As for `log_probabilities`.

    Raises:
        FloatingPointError: As `log_probabilities`.
    """
    softmax = log_softmax(list(logits_TV), [num_top] * len(logits_TV))
    return [token_log_probs(*row) for row in zip(logits_TV, next_tokens, softmax, strict=True)]


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
        rows = [(next_token_logits_BV[i], num) for i, num in enumerate(num_top) if num is not None]
        found = iter(log_softmax([row for row, _ in rows], [num for _, num in rows]))
        triples = zip(next_token_logits_BV, next_tokens, num_top, strict=True)
        return [None if num is None else token_log_probs(row, token, next(found)) for row, token, num in triples]
