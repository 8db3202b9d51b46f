"""Logits processors: changes to a row of logits before a token is chosen from it.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.sampling.changes import LogitChanges, Mask, Packed
from pipelines.sampling.params import SamplingParams


class LogitsProcessor(Protocol):
    """A change to the logits of one request, which may depend on the tokens that were sampled."""

    @property
    def is_active(self) -> bool:
        """Whether `apply` would change the next row; where no processor is active, the row isn't copied."""

    def apply(self, logits_V: NDArray[np.float32]) -> None:
        """Changes the logits of the next token in place."""

    def add_to(self, changes: LogitChanges) -> None:
        """Adds what `apply` would do to the changes of the row, for a sampler on a device; raises what it would."""

    def accept(self, token: int) -> None:
        """Takes the token that was sampled."""


class RepetitionPenalty:
    """Makes tokens of prompt and output less likely, as transformers' RepetitionPenaltyLogitsProcessor does."""

    def __init__(self, penalty: float, prompt: Iterable[int] = ()) -> None:
        self._penalty = penalty
        self._seen = set(prompt)
        # The same ids where numpy gets at them fast: a prompt may hold most of the vocabulary.
        self._ids = array("q", self._seen)
        self._bits: Packed | None = None

    @property
    def is_active(self) -> bool:
        """Whether any token has been seen."""
        return len(self._ids) > 0

    def apply(self, logits_V: NDArray[np.float32]) -> None:
        """Divides positive logits of seen tokens by the penalty, and multiplies negative ones."""
        ids = np.array(self._ids)
        seen = logits_V[ids]
        logits_V[ids] = np.where(seen < 0, seen * self._penalty, seen / self._penalty)

    def add_to(self, changes: LogitChanges) -> None:
        """Adds the penalty, and the tokens seen as bits that are kept from row to row."""
        if self._bits is None:
            is_seen = np.zeros(8 * changes.num_bytes, np.bool_)
            is_seen[np.array(self._ids, np.int64)] = True
            self._bits = np.packbits(is_seen, bitorder="little")
        changes.penalize_seen(self._penalty, self._bits)

    def accept(self, token: int) -> None:
        """Adds the token to those seen."""
        if token not in self._seen:
            self._seen.add(token)
            self._ids.append(token)
            if self._bits is not None:
                self._bits[token // 8] |= np.uint8(1 << token % 8)


class PresenceFrequencyPenalty:
    """Makes tokens of the output less likely: once for their presence, and once for each occurrence.

    Source: the OpenAI API's presence_penalty and frequency_penalty.
    """

    def __init__(self, presence_penalty: float, frequency_penalty: float) -> None:
        # A numpy scalar makes numpy subtract in float64, with one rounding into the row.
        self._presence_penalty = np.float64(presence_penalty)
        self._frequency_penalty = frequency_penalty
        # Tokens and their counts, where numpy gets at them fast, and the place of each token there.
        self._ids, self._counts = array("q"), array("f")
        self._places: dict[int, int] = {}

    @property
    def is_active(self) -> bool:
        """Whether any token has been sampled."""
        return len(self._ids) > 0

    def apply(self, logits_V: NDArray[np.float32]) -> None:
        """Subtracts the penalties from the logits of sampled tokens."""
        ids, times = np.array(self._ids), np.array(self._counts)
        logits_V[ids] = logits_V[ids] - self._frequency_penalty * times - self._presence_penalty

    def add_to(self, changes: LogitChanges) -> None:
        """Adds both penalties."""
        frequencies = self._frequency_penalty * np.array(self._counts)
        changes.subtract_penalties(np.array(self._ids), frequencies, float(self._presence_penalty))

    def accept(self, token: int) -> None:
        """Counts the token."""
        place = self._places.setdefault(token, len(self._ids))
        if place == len(self._ids):
            self._ids.append(token)
            self._counts.append(0)
        self._counts[place] += 1


class LogitBias:
    """Adds a bias to the logits of some tokens, as in the OpenAI API."""

    def __init__(self, biases: Mapping[int, float]) -> None:
        self._ids = np.fromiter(biases.keys(), np.int64, len(biases))
        self._biases = np.fromiter(biases.values(), np.float32, len(biases))

    @property
    def is_active(self) -> bool:
        """Always: biases apply to every row."""
        return True

    def apply(self, logits_V: NDArray[np.float32]) -> None:
        """Adds the biases."""
        logits_V[self._ids] += self._biases

    def add_to(self, changes: LogitChanges) -> None:
        """Adds the biases."""
        changes.add_biases(self._ids, self._biases)

    def accept(self, token: int) -> None:
        """Does nothing: biases do not depend on the output."""


class MinTokens:
    """Masks the tokens that would end the request until `min_tokens` have been sampled."""

    def __init__(self, min_tokens: int, stop_ids: Collection[int]) -> None:
        self._num_missing = min_tokens
        self._stop_ids = list(stop_ids)

    @property
    def is_active(self) -> bool:
        """Whether fewer than `min_tokens` have been sampled."""
        return self._num_missing > 0

    def apply(self, logits_V: NDArray[np.float32]) -> None:
        """Masks the stop tokens."""
        logits_V[[token for token in self._stop_ids if token < len(logits_V)]] = -np.inf

    def add_to(self, changes: LogitChanges) -> None:
        """Bans the stop tokens."""
        changes.ban(self._stop_ids)

    def accept(self, token: int) -> None:
        """Counts the token."""
        self._num_missing -= 1


class AllowedTokens:
    """Masks all but the allowed tokens.

    A grammar is a subclass, or an owner, that replaces the mask before each token: `accept` gives it the tokens, and
    the next mask may be computed while the model runs, up to the call of `apply`.
    """

    def __init__(self, mask: Mask | None = None) -> None:
        self.set_mask(mask)

    @classmethod
    def from_ids(cls, token_ids: Sequence[int]) -> AllowedTokens:
        """Creates a processor that allows these tokens, at least one."""
        mask = np.zeros(max(token_ids) + 1, np.bool_)
        mask[np.asarray(token_ids)] = True
        return cls(mask)

    def set_mask(self, mask: Mask | None) -> None:
        """Replaces the mask; None allows all tokens. Tokens past its end are not allowed.

        Packed masks may be of any integer type: uint8 from `np.packbits(..., bitorder="little")`, or the int32 [V / 32]
        of grammar libraries.
        """
        self._allowed = mask
        self._limits_V = None if mask is None else _limits(mask)

    @property
    def is_active(self) -> bool:
        """Whether there is a mask."""
        return self._limits_V is not None

    def apply(self, logits_V: NDArray[np.float32]) -> None:
        """Sets the logits of tokens that are not allowed to minus infinity."""
        if self._limits_V is not None:
            known_V = logits_V[: len(self._limits_V)]
            unknown_V = logits_V[len(known_V) :]
            # A minimum leaves NaN as it is, for the sampler to notice.
            np.minimum(known_V, self._limits_V[: len(known_V)], out=known_V)
            np.minimum(unknown_V, -np.inf, out=unknown_V)

    def add_to(self, changes: LogitChanges) -> None:
        """Restricts the row to the mask."""
        if self._allowed is not None:
            changes.restrict(self._allowed)

    def accept(self, token: int) -> None:
        """Does nothing: this mask stays until it is replaced."""


def _limits(mask: Mask) -> NDArray[np.float32]:
    """Upper limits of logits: infinity where the mask allows a token, minus infinity where it does not.

    A minimum takes a tenth of the time of a masked copy, which branches.
    """
    if mask.dtype != np.bool_:
        mask = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), bitorder="little")
    limits_V = mask.astype(np.float32)
    limits_V -= 0.5
    limits_V *= np.inf
    return limits_V


def logits_processors(
    params: SamplingParams, prompt: Sequence[int] = (), eos_token_ids: Collection[int] = ()
) -> list[LogitsProcessor]:
    """Builds the processors that the parameters need, in the order in which they apply.

    Penalties come first, since the repetition penalty depends on the sign of the model's own logits; a bias before it
    would be scaled by it. Masks come last, so that nothing makes a masked token possible again, and the allowed tokens
    at the very end, since a grammar's mask may arrive that late.

    Args:
        params: Parameters of the request.
        prompt: Its tokens, which the repetition penalty counts too.
        eos_token_ids: The model's end-of-text tokens, which `min_tokens` masks.
    """
    resolved = params.resolved()
    processors: list[LogitsProcessor] = []
    if resolved.repetition_penalty != 1.0:
        processors.append(RepetitionPenalty(resolved.repetition_penalty, prompt))
    if resolved.presence_penalty != 0.0 or resolved.frequency_penalty != 0.0:
        processors.append(PresenceFrequencyPenalty(resolved.presence_penalty, resolved.frequency_penalty))
    if resolved.logit_bias:
        processors.append(LogitBias(dict(resolved.logit_bias)))
    if resolved.min_tokens > 0:
        processors.append(MinTokens(resolved.min_tokens, resolved.stop_ids(eos_token_ids)))
    if resolved.allowed_token_ids is not None:
        processors.append(AllowedTokens.from_ids(resolved.allowed_token_ids))
    return processors
