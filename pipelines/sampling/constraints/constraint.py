"""The grammar of one request while it is generated: which tokens may come next.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.sampling.changes import LogitChanges
from pipelines.sampling.processors import AllowedTokens

if TYPE_CHECKING:
    from llguidance import LLMatcher


class ConstraintError(InputError):
    """Raised when a grammar can't be followed any further; it ends its request."""


class Constraint(AllowedTokens):
    """Holds the tokens of one request to a grammar; `ConstraintCompiler` makes them.

    It is the last of the request's logits processors. `prepare` computes the next mask while the model runs; otherwise
    `apply` does.

    mask_size: tokens that the grammar knows. vocab_size: those of them that the model knows.
    """

    is_active = True

    def __init__(self, matcher: LLMatcher, mask_size: int, vocab_size: int) -> None:
        super().__init__()
        self._matcher, self._vocab_size = matcher, vocab_size
        self._mask = np.zeros(-(-mask_size // 32), np.int32)
        self._is_prepared = False

    def copy(self) -> Constraint:
        """Makes a constraint in the same state, for another answer to the same request."""
        return Constraint(self._matcher.deep_copy(), 32 * len(self._mask), self._vocab_size)

    @property
    def is_stopped(self) -> bool:
        """Whether the grammar is complete and no token but an end-of-text token may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def prepare(self) -> None:
        """Computes the mask of the next token, once. It raises nothing: `apply` and `accept` raise what went wrong."""
        if not self._is_prepared:
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
            self.set_mask(self._mask)
            self._is_prepared = True

    def mask(self) -> NDArray[np.int32]:
        """Tokens that may come next, packed [V / 32], lowest bit first, in a buffer that the next mask overwrites.

        Raises:
            ConstraintError: The grammar can't be followed any further.
        """
        self.prepare()
        self._check()
        return self._mask

    def allows(self, token: int) -> bool:
        """Whether a token may come next.

        Raises:
            ConstraintError: The grammar can't be followed any further.
        """
        return token < self._vocab_size and bool(self.mask()[token // 32] >> (token % 32) & 1)

    def apply(self, logits_V: NDArray[np.float32]) -> None:
        """Sets the logits of tokens that may not come next to minus infinity.

        Raises:
            ConstraintError: The grammar can't be followed any further.
        """
        self.mask()
        super().apply(logits_V)

    def add_to(self, changes: LogitChanges) -> None:
        """Restricts the row to the tokens that may come next.

        Raises:
            ConstraintError: The grammar can't be followed any further.
        """
        changes.restrict(self.mask())

    def accept(self, token: int) -> None:
        """Takes the token that was chosen.

        Raises:
            ConstraintError: The grammar does not allow it, or can't be followed any further.
        """
        self._is_prepared = False
        self._matcher.consume_token(token)
        self._check()

    def forced_tokens(self) -> list[int]:
        """Tokens that follow whatever the model says, in the tokenization that the text would have; often none."""
        tokens = [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()
        return list(takewhile(lambda token: token < self._vocab_size, tokens))

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = str(self._matcher.get_error()).split("\n")[0]
            raise ConstraintError(f"the answer's grammar can't be followed any further: {reason[:200]}")
