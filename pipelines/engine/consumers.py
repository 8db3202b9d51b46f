"""Consumers of logits: the part of a request that decides which logits its steps return and uses them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipelines.context import TextChunk, TextContext
from pipelines.engine.step import RowOutputs, Wanted
from pipelines.sampling.constraints import Constraint, ConstraintError
from pipelines.sampling.log_probabilities import TokenLogProbs, prompt_log_probabilities
from pipelines.sampling.sampler import Sampler
from pipelines.text.detokenizer import IncrementalDetokenizer, StopChecker


class StepConsumer(Protocol):
    """The use that one request makes of the logits of its steps."""

    @property
    def sampler(self) -> Sampler | None:
        """The sampler that chooses each next token; None if no token is generated."""

    @property
    def reuses_prefix(self) -> bool:
        """Whether the request needs no logits of tokens that the cache already has."""

    def num_logits(self, context: TextContext) -> int:
        """Number of last positions of the scheduled tokens whose logits are needed, at least 1."""

    def prepare(self) -> None:
        """Does what can be done while the model computes the step; raises nothing."""

    def wanted(self, context: TextContext, row: RowOutputs) -> Wanted:
        """Says which results it needs of the row's last logits, computed for all rows together; raises nothing."""

    def consume(self, context: TextContext, row: RowOutputs) -> TextChunk | None:
        """Uses the logits of a step and returns the chunk that they complete, if any.

        An exception ends this request with finish_reason "error", and no other.
        """


class PromptLogProbs:
    """Collects the log probabilities of a prompt's tokens from the second on, slab by slab.

    num_top: likeliest tokens of each position that are listed too. entries: one per token, in order; the first token
    has none.
    """

    def __init__(self, num_top: int) -> None:
        self.num_top = num_top
        self.entries: list[TokenLogProbs] = []

    def add(self, context: TextContext, row: RowOutputs) -> None:
        """Adds the prompt's part of a step, except positions that a preempted request computes again."""
        first = max(row.start, len(self.entries))
        end = min(row.start + row.num_tokens, context.num_prompt_tokens - 1)
        if first < end:
            slab = row.logits_TV[first - row.start : end - row.start]
            self.entries += prompt_log_probabilities(slab, context.tokens[first + 1 : end + 1], self.num_top)


class NextToken:
    """Samples the next token once the prompt is computed, and detokenizes it.

    max_length: the most tokens of prompt and output. prompt_logprobs: collects the prompt's log probabilities, if the
    parameters ask for them. constraint: the sampler's own, a grammar for the output. Tokens that it forces are appended
    without sampling and computed together in the next step, except where log probabilities of the output are wanted:
    those are sampled one by one. The request stops where the grammar is complete.
    """

    def __init__(
        self,
        sampler: Sampler,
        detokenizer: IncrementalDetokenizer,
        stops: StopChecker,
        eos_token_ids: Collection[int],
        max_length: int,
        prompt_logprobs: PromptLogProbs | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self.sampler, self.detokenizer, self.stops = sampler, detokenizer, stops
        self.eos_token_ids, self.max_length = eos_token_ids, max_length
        self.prompt_logprobs, self.constraint = prompt_logprobs, constraint

    @property
    def reuses_prefix(self) -> bool:
        """Whether no log probabilities of the prompt are wanted."""
        return self.prompt_logprobs is None

    def num_logits(self, context: TextContext) -> int:
        """All scheduled tokens of the prompt if its log probabilities are wanted, otherwise the last position."""
        is_prompt = context.num_computed_tokens < context.num_prompt_tokens
        return context.num_scheduled_tokens if is_prompt and self.prompt_logprobs is not None else 1

    def prepare(self) -> None:
        """Computes the grammar's mask of the next token."""
        if self.constraint is not None:
            self.constraint.prepare()

    def wanted(self, context: TextContext, row: RowOutputs) -> Wanted:
        """A token, unless the graph's own choice is one that nothing could change; the log probabilities asked for."""
        if not row.is_complete:
            return Wanted()
        return Wanted(self.sampler if self._samples(context, row) else None, context.params.logprobs)

    def consume(self, context: TextContext, row: RowOutputs) -> TextChunk | None:
        """Appends the next token to the context, with those it forces, and returns their chunk, once the prompt is
        computed.

        Raises:
            FloatingPointError: The logits hold NaN or infinity.
            NoTokenLeftError: The request's masks leave no token.
            ConstraintError: The request's grammar can't be followed any further.
        """
        if self.prompt_logprobs is not None and row.start < context.num_prompt_tokens:
            self.prompt_logprobs.add(context, row)
        if not row.is_complete:
            return None
        token = self._next_token(row)
        logprobs = None if row.log_probs is None else row.log_probs(token)
        chunk = self._accept(context, token, logprobs)
        return chunk if self.constraint is None or logprobs is not None else self._with_forced(context, chunk)

    def _samples(self, context: TextContext, row: RowOutputs) -> bool:
        """Whether the token is sampled; otherwise the graph's own choice is taken, or is an error."""
        if context.params.needs_logits or self.constraint is None:
            return context.params.needs_logits
        try:
            return not self.constraint.allows(row.greedy_token)
        except (FloatingPointError, ConstraintError):
            return False

    def _next_token(self, row: RowOutputs) -> int:
        if row.choice is not None:
            return self.sampler.take(row.choice)
        self.sampler.accept(row.greedy_token)
        return row.greedy_token

    def _with_forced(self, context: TextContext, chunk: TextChunk) -> TextChunk:
        """Appends the tokens that must follow, until one of them ends the request; returns the chunk of all."""
        assert self.constraint is not None
        for token in () if chunk.finish_reason else self.constraint.forced_tokens():
            self.sampler.accept(token)
            more = self._accept(context, token, None)
            chunk = TextChunk(chunk.text + more.text, chunk.tokens + more.tokens, (), more.finish_reason)
            if chunk.finish_reason:
                break
        return chunk

    def _accept(self, context: TextContext, token: int, logprobs: TokenLogProbs | None) -> TextChunk:
        """Appends a token and returns its chunk: the text that it completes, the finish reason if it is the last."""
        context.tokens.append(token)
        reason = context.finish_reason_after(token, self.eos_token_ids, self.max_length)
        text = "" if reason == "stop" else self.detokenizer.push(token)
        if self.constraint is not None and self.constraint.is_stopped:
            reason = "stop"
        text += self.detokenizer.finish() if reason else ""
        if context.num_output_tokens > context.params.min_tokens:
            text, is_stopped = self.stops.feed(text)
            reason = "stop" if is_stopped else reason
            text += self.stops.finish() if reason and not is_stopped else ""
        return TextChunk(text, (token,), () if logprobs is None else (logprobs,), reason)


class PromptLogits:
    """Passes the logits of all prompt positions on, slab by slab, once each, and generates nothing.

    on_slab: is called with the first position and the logits [t, V], which are valid until it returns.
    """

    sampler = None
    reuses_prefix = False

    def __init__(self, on_slab: Callable[[int, npt.NDArray[np.float32]], None]) -> None:
        self._on_slab, self._num_done = on_slab, 0

    def num_logits(self, context: TextContext) -> int:
        """All scheduled tokens."""
        return context.num_scheduled_tokens

    def prepare(self) -> None:
        """Does nothing."""

    def wanted(self, context: TextContext, row: RowOutputs) -> Wanted:
        """Nothing."""
        return Wanted()

    def consume(self, context: TextContext, row: RowOutputs) -> TextChunk | None:
        """Passes the positions on that are new; the last of them ends the request."""
        num_known = max(0, self._num_done - row.start)  # a preempted request computes positions again
        if num_known < row.num_tokens:
            self._on_slab(row.start + num_known, row.logits_TV[num_known:])
            self._num_done = row.start + row.num_tokens
        return TextChunk("", finish_reason="length") if row.is_complete else None
