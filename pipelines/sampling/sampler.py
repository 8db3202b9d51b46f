"""The sampler: from rows of logits to the next tokens, on the host.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.sampling.changes import LogitChanges
from pipelines.sampling.native import NO_TOKEN, Cuts, choose_tokens
from pipelines.sampling.params import SamplingParams
from pipelines.sampling.processors import LogitsProcessor, logits_processors

Row = NDArray[np.float32]
Choice = int | Exception
"""A token, or why there is none."""

MAX_COPIES = 32
"""Rows that are copied at a time: those that a request's processors change."""


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
        resolved = params.resolved()
        self._random = np.random.default_rng(resolved.seed)
        self._uniform: float | None = None
        self._cuts = Cuts.of(resolved)
        self._processors = logits_processors(resolved, prompt, eos_token_ids)
        if constraint is not None:
            self._processors.append(constraint)

    def sample(self, logits_V: Row) -> int:
        """Chooses the next token. `logits_V` [V] is left as it is; at equal logits the greedy choice is the lowest id.

        Raises:
            FloatingPointError: The logits hold NaN or infinity, so that no token is likeliest.
            NoTokenLeftError: The request's masks leave no token with a finite logit.
        """
        return self.take(sample_rows([logits_V], [self])[0])

    def take(self, choice: Choice) -> int:
        """Takes a choice of `sample_rows`: its random number is used up.

        Raises:
            Exception: The choice itself, if it is one.
        """
        if isinstance(choice, Exception):
            raise choice
        self._uniform = None
        self.accept(choice)
        return choice

    def accept(self, token: int) -> None:
        """Takes a token that was chosen otherwise, as if it had been sampled; no random number is drawn."""
        for processor in self._processors:
            processor.accept(token)

    @property
    def cuts(self) -> Cuts:
        """The parameters that cut a row."""
        return self._cuts

    def next_uniform(self) -> float:
        """Returns the random number of the next choice, in [0, 1): the same one until a choice is taken."""
        if self._uniform is None:
            self._uniform = self._random.random() if self._cuts.temperature > 0.0 else 0.0
        return self._uniform

    def processed(self, logits_V: Row) -> Row:
        """Applies all processors to a copy of a row; returns the row itself if none of them would change it."""
        active = [processor for processor in self._processors if processor.is_active]
        if active:
            logits_V = logits_V.copy()
            for processor in active:
                processor.apply(logits_V)
        return logits_V

    def changes(self, vocab_size: int) -> LogitChanges | None:
        """Returns the changes that `processed` would make to the next row, for a sampler on a device; None if none.

        Raises:
            Exception: That of a processor, as `processed` would raise it.
        """
        active = [processor for processor in self._processors if processor.is_active]
        if not active:
            return None
        changes = LogitChanges(vocab_size)
        for processor in active:
            processor.add_to(changes)
        return changes


def sample_rows(logits: Sequence[Row], samplers: Sequence[Sampler]) -> list[Choice]:
    """Chooses a token from each row [V], on all cores; a choice depends on its row and sampler alone.

    It changes no sampler, and repeated it chooses the same: `Sampler.take` makes a choice count.
    """
    choices: list[Choice] = []
    for start in range(0, len(logits), MAX_COPIES):
        choices += _sample_some(logits[start : start + MAX_COPIES], samplers[start : start + MAX_COPIES])
    return choices


def _sample_some(logits: Sequence[Row], samplers: Sequence[Sampler]) -> list[Choice]:
    """Chooses from rows of which all copies are kept at once; an error of a request's processors is its choice."""
    processed = [_processed(row_V, sampler) for row_V, sampler in zip(logits, samplers, strict=True)]
    whole = [i for i, row in enumerate(processed) if not isinstance(row, Exception)]
    rows: list[Row] = [row for row in processed if not isinstance(row, Exception)]
    tokens = choose_tokens(rows, [samplers[i].cuts for i in whole], [samplers[i].next_uniform() for i in whole])
    choices: list[Choice] = [row if isinstance(row, Exception) else NO_TOKEN for row in processed]
    for i, row_V, token in zip(whole, rows, tokens, strict=True):
        choices[i] = no_choice(logits[i], row_V) if token == NO_TOKEN else token
    return choices


def _processed(logits_V: Row, sampler: Sampler) -> Row | Exception:
    try:
        return sampler.processed(logits_V)
    except Exception as error:
        return error


def no_choice(logits_V: Row, processed_V: Row) -> Exception:
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
