"""The wish of a request: what it does with the logits of each of its steps."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipelines.context import TextChunk, TextContext
from pipelines.engine.step import RowOutputs
from pipelines.sampling.log_probabilities import TokenLogProbs, log_probabilities, prompt_log_probabilities
from pipelines.sampling.sampler import Sampler
from pipelines.text.detokenizer import IncrementalDetokenizer, StopChecker


class StepConsumer(Protocol):
    """reuses_prefix: whether it can do without the logits of tokens that the cache already has."""

    @property
    def reuses_prefix(self) -> bool: ...

    def num_logits(self, context: TextContext) -> int:
        """Last positions of the scheduled tokens whose logits it needs, at least 1."""

    def consume(self, context: TextContext, row: RowOutputs) -> TextChunk | None:
        """Takes the logits of a step; the chunk that they complete. An exception ends the request, and no other."""


class PromptLogProbs:
    """Gathers the log probabilities of a prompt's tokens from the second on, slab by slab.

    entries: one a token, in order; the first token has none.
    """

    def __init__(self, num_top: int) -> None:
        self.num_top = num_top
        self.entries: list[TokenLogProbs] = []

    def add(self, context: TextContext, row: RowOutputs) -> None:
        """Takes the part of a step that is of the prompt; a preempted request comes by again."""
        first = max(row.start, len(self.entries))
        end = min(row.start + row.num_tokens, context.num_prompt_tokens - 1)
        if first < end:
            slab = row.logits_TV[first - row.start : end - row.start]
            self.entries += prompt_log_probabilities(slab, context.tokens[first + 1 : end + 1], self.num_top)


class NextToken:
    """Samples the next token where the prompt is complete, and makes it text.

    max_length: tokens of prompt and output. The prompt's log probabilities are gathered on the way, where the
    parameters ask for them.
    """

    def __init__(
        self,
        sampler: Sampler,
        detokenizer: IncrementalDetokenizer,
        stops: StopChecker,
        eos_token_ids: Collection[int],
        max_length: int,
        prompt_logprobs: PromptLogProbs | None = None,
    ) -> None:
        self.sampler, self.detokenizer, self.stops = sampler, detokenizer, stops
        self.eos_token_ids, self.max_length = eos_token_ids, max_length
        self.prompt_logprobs = prompt_logprobs

    @property
    def reuses_prefix(self) -> bool:
        return self.prompt_logprobs is None

    def num_logits(self, context: TextContext) -> int:
        is_prompt = context.num_computed_tokens < context.num_prompt_tokens
        return context.num_scheduled_tokens if is_prompt and self.prompt_logprobs is not None else 1

    def consume(self, context: TextContext, row: RowOutputs) -> TextChunk | None:
        if self.prompt_logprobs is not None and row.start < context.num_prompt_tokens:
            self.prompt_logprobs.add(context, row)
        if not row.is_complete:
            return None
        num_top = context.params.logprobs
        token = self.sampler.sample(row.next_logits_V) if context.params.needs_logits else row.greedy_token
        logprobs = None if num_top is None else log_probabilities(row.next_logits_V, token, num_top)
        return self._accept(context, token, logprobs)

    def _accept(self, context: TextContext, token: int, logprobs: TokenLogProbs | None) -> TextChunk:
        """Appends a token: the text that it completes, and whether the request ends with it."""
        context.tokens.append(token)
        reason = context.finish_reason_after(token, self.eos_token_ids, self.max_length)
        text = "" if reason == "stop" else self.detokenizer.push(token)
        text += self.detokenizer.finish() if reason else ""
        if context.num_output_tokens > context.params.min_tokens:
            text, is_stopped = self.stops.feed(text)
            reason = "stop" if is_stopped else reason
            text += self.stops.finish() if reason and not is_stopped else ""
        return TextChunk(text, (token,), () if logprobs is None else (logprobs,), reason)


class PromptLogits:
    """Hands the logits of all prompt positions on, slab by slab, once each, and generates nothing.

    on_slab: takes the first position and the logits [t, V], which are valid until it returns.
    """

    reuses_prefix = False

    def __init__(self, on_slab: Callable[[int, npt.NDArray[np.float32]], None]) -> None:
        self._on_slab, self._num_done = on_slab, 0

    def num_logits(self, context: TextContext) -> int:
        return context.num_scheduled_tokens

    def consume(self, context: TextContext, row: RowOutputs) -> TextChunk | None:
        num_known = max(0, self._num_done - row.start)  # a preempted request comes by again
        if num_known < row.num_tokens:
            self._on_slab(row.start + num_known, row.logits_TV[num_known:])
            self._num_done = row.start + row.num_tokens
        return TextChunk("", finish_reason="length") if row.is_complete else None
