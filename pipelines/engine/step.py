"""A step of the model: `launch`, which does not wait, the choice of tokens, and `collect`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kv_cache import KVCacheManager
from pipelines.context import TextContext
from pipelines.engine.scheduler import StepPlan
from pipelines.pipeline_model import ModelOutputs, PendingTokens, PipelineModel
from pipelines.sampling.log_probabilities import TokenLogProbs, token_log_probs
from pipelines.sampling.native import log_softmax
from pipelines.sampling.sampler import Choice, Sampler, sample_rows

LogProbs = Callable[[int], TokenLogProbs]
"""The log probabilities at a position, once its token is known; raises FloatingPointError if there are none."""


class StepOutputs:
    """The outputs of a step on the host, each copied there when a row first asks for it."""

    def __init__(self, outputs: ModelOutputs) -> None:
        self._outputs = outputs

    @cached_property
    def logit_offsets(self) -> list[int]:
        """Where each row begins among the returned positions, [B + 1]."""
        offsets: list[int] = self._outputs.logit_offsets.to_numpy().tolist()
        return offsets

    @cached_property
    def logits_MV(self) -> npt.NDArray[np.float32]:
        """Logits of all returned positions."""
        return self._outputs.logits.to_numpy()

    @cached_property
    def next_token_logits_BV(self) -> npt.NDArray[np.float32]:
        """Logits of each row's last position."""
        return self._outputs.next_token_logits.to_numpy()

    @cached_property
    def greedy_tokens_M(self) -> npt.NDArray[np.int64]:
        """Likeliest token of each returned position."""
        return self._outputs.greedy_tokens.to_numpy()

    @cached_property
    def max_logits_M(self) -> npt.NDArray[np.float32]:
        """Logit of the likeliest token of each returned position; not finite where no token is likeliest."""
        return self._outputs.max_logits.to_numpy()


@dataclass(frozen=True)
class Wanted:
    """The results that a row's consumer needs of the logits of its last position, on the host.

    sampler: chooses a token. num_top: log probabilities, with so many of the likeliest tokens.
    """

    sampler: Sampler | None = None
    num_top: int | None = None


@dataclass
class RowOutputs:
    """The outputs of one row of a step. Arrays are valid until the next step.

    context: the request. row: its place in the batch. start: the position of its first token. num_tokens: tokens that
    the step computes. is_complete: whether these are the last tokens of the request, so that the last logits choose the
    next one; known when the step before is collected. choice, log_probs: what its consumer wanted, once collected.
    """

    context: TextContext
    outputs: StepOutputs
    row: int
    start: int
    num_tokens: int
    is_complete: bool = False
    choice: Choice | None = None
    log_probs: LogProbs | None = None

    @property
    def next_sampler(self) -> Sampler | None:
        """The sampler of the token that follows the row's last one; None if no token is wanted."""
        consumer = self.context.consumer
        is_wanted = self.is_complete and consumer is not None and not self.context.is_finished
        return consumer.sampler if is_wanted and consumer is not None else None

    @property
    def next_logits_V(self) -> npt.NDArray[np.float32]:
        """Logits of the token that follows the row's last one."""
        return self.outputs.next_token_logits_BV[self.row]

    @property
    def logits_TV(self) -> npt.NDArray[np.float32]:
        """Logits of all the row's tokens, if its consumer asked for as many."""
        end = self.outputs.logit_offsets[self.row + 1]
        return self.outputs.logits_MV[end - self.num_tokens : end]

    @property
    def greedy_token(self) -> int:
        """Likeliest token after the row's last one.

        Raises:
            FloatingPointError: The logits hold NaN or infinity, so that no token is likeliest.
        """
        last = self.outputs.logit_offsets[self.row + 1] - 1
        token = int(self.outputs.greedy_tokens_M[last])
        if not is_likeliest(self.outputs.max_logits_M[last]):
            raise FloatingPointError("the model's logits hold NaN or infinity: no token is likeliest")
        return token


def is_likeliest(max_logit: np.float32) -> bool:
    """Whether a position with this largest logit has a likeliest token.

    It has none if a logit is NaN or infinite, or if all are minus infinity: MAX's maximum begins at the lowest number.
    """
    return bool(np.isfinite(max_logit) and max_logit > np.finfo(np.float32).min)


class ChosenTokens(PendingTokens, Protocol):
    """The tokens that a launched sampler chooses."""

    def collect(self) -> None:
        """Waits for them, and sets `choice` and `log_probs` of the rows that want them."""


class TokenSampler(Protocol):
    """A sampler on the device, for all rows of a step."""

    def launch(self, outputs: ModelOutputs, rows: Sequence[RowOutputs]) -> ChosenTokens:
        """Starts choosing the next tokens of those rows that have a `next_sampler`.

        Raises:
            Exception: A row's own processors or masks fail.
        """


@dataclass
class LaunchedStep:
    """A step that has been started; the host is free until it collects it.

    rows: the requests' parts of it. num_tokens: of all rows. is_prefill: whether it is more than one decode of each.
    launched_at: by `time.perf_counter`. chosen: tokens that a sampler on the device chooses, once it is launched.
    """

    outputs: ModelOutputs
    rows: list[RowOutputs]
    num_tokens: int
    is_prefill: bool
    launched_at: float
    chosen: ChosenTokens | None = None

    @classmethod
    def launch(
        cls, model: PipelineModel, cache: KVCacheManager, plan: StepPlan, pending: PendingTokens | None = None
    ) -> LaunchedStep:
        """Starts a step, whose pages are allocated; `pending` has the tokens that its contexts wait for."""
        contexts, launched_at = plan.contexts, time.perf_counter()
        pages = [context.pages for context in contexts if context.pages is not None]
        kv_cache_inputs = cache.runtime_inputs(pages, [context.num_scheduled_tokens for context in contexts])
        num_logits = max(c.consumer.num_logits(c) if c.consumer is not None else 1 for c in contexts)
        inputs = model.prepare_initial_token_inputs([contexts], kv_cache_inputs, num_logits, pending)
        outputs = model.execute(inputs)
        shared = StepOutputs(outputs)
        rows = [
            RowOutputs(context, shared, row, context.num_computed_tokens, context.num_scheduled_tokens)
            for row, context in enumerate(contexts)
        ]
        return cls(outputs, rows, plan.num_tokens, plan.is_prefill, launched_at)

    @property
    def unfinished_rows(self) -> list[RowOutputs]:
        """The rows of requests that have not ended since."""
        return [row for row in self.rows if not row.context.is_finished]

    def choose(self, sampler: TokenSampler | None) -> None:
        """Prepares the choice of tokens while the model computes, and starts it if a sampler is on the device.

        The step before must have been collected: masks and penalties depend on its tokens.
        """
        for row in self.unfinished_rows:
            row.is_complete = row.start + row.num_tokens == len(row.context.tokens)
            if row.context.consumer is not None:
                row.context.consumer.prepare()
        if sampler is not None:
            self.chosen = sampler.launch(self.outputs, self.rows)

    def mark_pending(self) -> None:
        """Marks the contexts whose next token is being chosen, for steps that are launched before this is collected."""
        for row in self.rows:
            if row.next_sampler is not None:
                row.context.pending_row = row.row

    def collect(self) -> list[RowOutputs]:
        """Waits for the step; returns the rows of requests that have not ended, with what their consumers wanted."""
        if self.chosen is not None:
            self.chosen.collect()
        else:
            choose_tokens(self.rows)
        rows = self.unfinished_rows
        for row in rows:
            row.context.pending_row = None
        return rows


def choose_tokens(rows: Sequence[RowOutputs]) -> None:
    """Chooses the tokens of all rows on the host, and computes the log-softmax of those that want it."""
    wanted = [(row, row.context.consumer.wanted(row.context, row)) for row in rows if row.context.consumer is not None]
    sampled = [(row, wants.sampler) for row, wants in wanted if wants.sampler is not None]
    choices = sample_rows([row.next_logits_V for row, _ in sampled], [sampler for _, sampler in sampled])
    for (row, _), choice in zip(sampled, choices, strict=True):
        row.choice = choice
    logged = [(row, wants.num_top) for row, wants in wanted if wants.num_top is not None]
    entries = log_softmax([row.next_logits_V for row, _ in logged], [num_top for _, num_top in logged])
    for (row, _), softmax in zip(logged, entries, strict=True):
        row.log_probs = partial(token_log_probs, row.next_logits_V, softmax=softmax)
