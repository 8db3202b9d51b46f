"""The changes that a request's processors make to its next row of logits, as data for a sampler on a device.

Shape suffixes: W bytes of a packed mask, N tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_] | NDArray[np.integer[Any]]
"""Allowed tokens: bool [V], or packed into the bits of integers, lowest bit first."""
Packed = NDArray[np.uint8]


class Edits(NamedTuple):
    """Tokens [N], each once, and the amounts [N, 3] of their frequency, their presence and their bias.

    A logit becomes itself - frequency - presence + bias; the first and the last are float32 numbers.
    """

    ids: NDArray[np.int64]
    amounts: NDArray[np.float64]


class LogitChanges:
    """The changes to one row: the repetition penalty with the tokens that it applies to, then edits, then masks.

    repetition_penalty: 1 for none. seen: the tokens that it applies to, packed [W]; None: none. allowed: the tokens
    that may be chosen, packed [W]; None: all.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.num_bytes = -(-vocab_size // 8)
        self.repetition_penalty = 1.0
        self.seen: Packed | None = None
        self.allowed: Packed | None = None
        self._edits: list[Edits] = []

    def penalize_seen(self, penalty: float, seen: Packed) -> None:
        """Sets the repetition penalty; `seen` may be shorter than the vocabulary."""
        self.repetition_penalty, self.seen = penalty, self._padded(seen)

    def subtract_penalties(
        self, ids: NDArray[np.int64], frequencies: NDArray[np.floating[Any]], presence: float
    ) -> None:
        """Subtracts from the logits of tokens, each given once, an amount of its own, then the same one from all."""
        amounts = np.zeros((len(ids), 3))
        amounts[:, 0], amounts[:, 1] = frequencies, presence
        self._edits.append(Edits(ids, amounts))

    def add_biases(self, ids: NDArray[np.int64], biases: NDArray[np.float32]) -> None:
        """Adds a bias to the logit of each token, each given once."""
        amounts = np.zeros((len(ids), 3))
        amounts[:, 2] = biases
        self._edits.append(Edits(ids, amounts))

    def restrict(self, mask: Mask) -> None:
        """Allows no token but those of the mask; tokens past its end are not allowed."""
        bits = np.packbits(mask, bitorder="little") if mask.dtype == np.bool_ else np.ascontiguousarray(mask)
        packed = self._padded(bits.view(np.uint8))
        self.allowed = packed if self.allowed is None else self.allowed & packed

    def ban(self, ids: Collection[int]) -> None:
        """Allows none of these tokens."""
        allowed = np.full(self.num_bytes, 0xFF, np.uint8) if self.allowed is None else self.allowed.copy()
        for token in ids:
            if token < self._vocab_size:
                allowed[token // 8] &= ~np.uint8(1 << token % 8)
        self.allowed = allowed

    @property
    def edits(self) -> Edits:
        """All edits, those of one token together."""
        if len(self._edits) == 1:
            return self._edits[0]
        ids = np.unique(np.concatenate([np.empty(0, np.int64), *(edit.ids for edit in self._edits)]))
        amounts = np.zeros((len(ids), 3))
        for edit in self._edits:
            amounts[np.searchsorted(ids, edit.ids)] += edit.amounts
        return Edits(ids, amounts)

    def _padded(self, bits: Packed) -> Packed:
        known = bits[: self.num_bytes]
        return np.concatenate([known, np.zeros(self.num_bytes - len(known), np.uint8)])
