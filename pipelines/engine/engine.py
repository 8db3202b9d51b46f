"""The step loop: schedule, execute, sample, commit, until every request is done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kv_cache import KVCacheManager
from pipelines.context import TextContext
from pipelines.engine.scheduler import Scheduler
from pipelines.pipeline_model import ModelOutputs, PipelineModel
from pipelines.sampling.log_probabilities import TokenLogProbs, log_probabilities
from pipelines.sampling.sampler import Sampler
from pipelines.text.detokenizer import IncrementalDetokenizer, StopChecker


@dataclass(frozen=True)
class TextChunk:
    """What one step added to a request; text may lag behind the tokens while a character is incomplete."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogProbs, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True)
class Choice:
    """A chosen token."""

    token: int
    logprobs: TokenLogProbs | None = None

    @classmethod
    def from_logits(cls, sampler: Sampler, logits_V: npt.NDArray[np.float32], num_top: int | None) -> Choice:
        token = sampler.sample(logits_V)
        return cls(token, None if num_top is None else log_probabilities(logits_V, token, num_top))


@dataclass(eq=False)
class Request:
    """One request: its state, how its tokens are chosen, and what it has given so far.

    logits: where those of its tokens go, [T, V], for a request that wants them and no new tokens.
    """

    context: TextContext
    sampler: Sampler
    detokenizer: IncrementalDetokenizer
    stops: StopChecker
    logits: npt.NDArray[np.float32] | None = None
    chunks: deque[TextChunk] = field(default_factory=deque)
    is_done: bool = False

    def accept(self, choice: Choice, eos_token_ids: Collection[int], max_length: int) -> TextChunk:
        """Takes a new token: the text that it completes, and whether the request ends with it."""
        context = self.context
        context.append(choice.token)
        reason = context.finish_reason(choice.token, eos_token_ids, max_length)
        text = "" if reason == "stop" else self.detokenizer.push(choice.token)
        text += self.detokenizer.finish() if reason else ""
        if context.num_generated > context.params.min_tokens:
            text, is_stopped = self.stops.feed(text)
            reason = "stop" if is_stopped else reason
            text += self.stops.finish() if reason and not is_stopped else ""
        logprobs = () if choice.logprobs is None else (choice.logprobs,)
        return TextChunk(text, (choice.token,), logprobs, reason)


@dataclass
class EngineStats:
    """Totals since the start; a step with any prefill in it counts as prefill."""

    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @contextmanager
    def measure(self, batch: Sequence[TextContext]) -> Iterator[None]:
        """Adds the step that runs meanwhile, unless it fails."""
        num_tokens = sum(context.num_scheduled for context in batch)
        is_prefill = num_tokens > len(batch) or any(context.num_generated == 0 for context in batch)
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.num_steps += 1
        if is_prefill:
            self.num_prefill_tokens += num_tokens
            self.prefill_s += seconds
        else:
            self.num_decode_tokens += num_tokens
            self.decode_s += seconds


class Engine:
    """Runs requests together. Whoever waits for one calls `step`; the others advance with it.

    max_length: tokens of prompt and answer that a request may have.
    """

    def __init__(
        self,
        model: PipelineModel,
        cache: KVCacheManager,
        *,
        eos_token_ids: Collection[int],
        max_length: int,
        max_batch_size: int,
        max_step_tokens: int,
    ) -> None:
        self.model, self.cache, self.eos_token_ids, self.max_length = model, cache, eos_token_ids, max_length
        self.scheduler = Scheduler(cache, max_batch_size, max_step_tokens)
        self.stats = EngineStats()
        self._requests: dict[str, Request] = {}

    def check(self, request: Request) -> None:
        """Raises InputError for a request that could never fit in the cache."""
        self.scheduler.check(request.context, self.max_length)

    def add(self, request: Request) -> None:
        """Queues a request that has passed `check`."""
        self.scheduler.add(request.context)
        self._requests[request.context.request_id] = request

    def step(self) -> None:
        """One step of all requests: schedule, execute, sample, commit. After one that failed, the next goes on."""
        contexts = self.scheduler.schedule()
        batch = [self._requests[context.request_id] for context in contexts]
        with self.stats.measure(contexts):
            outputs = self._execute(batch)
            # A row is sampled when those before it are committed: if that fails, no random number is lost.
            for request, choice in zip(batch, self._sample(batch, outputs), strict=True):
                self._commit(request, choice)
        if not self.scheduler.has_work:
            self.cache.check()

    def cancel(self, request: Request) -> None:
        """Gives up a request, if it is not done."""
        if not request.is_done:
            self._finish(request)

    def _execute(self, batch: list[Request]) -> ModelOutputs:
        contexts = [request.context for request in batch]
        num_new = [context.num_scheduled for context in contexts]
        pages = self.cache.runtime_inputs([context.request_id for context in contexts], num_new)
        return_n_logits = max((r.context.num_scheduled for r in batch if r.logits is not None), default=1)
        inputs = self.model.prepare_initial_token_inputs([contexts], pages, return_n_logits)
        outputs = self.model.execute(inputs)
        if any(request.logits is not None for request in batch):
            self._keep_logits(batch, outputs.logits.to_numpy(), return_n_logits)
        return outputs

    def _keep_logits(self, batch: list[Request], logits_MV: npt.NDArray[np.float32], num_each: int) -> None:
        """Copies the last of each row's `num_each` positions to the requests that want them."""
        for row, request in enumerate(batch):
            if request.logits is not None:
                start, count, end = request.context.num_computed, request.context.num_scheduled, (row + 1) * num_each
                request.logits[start : start + count] = logits_MV[end - count : end]

    def _sample(self, batch: list[Request], outputs: ModelOutputs) -> Iterator[Choice | None]:
        """The next token of each row; None where the prompt is not complete yet, or no token is wanted."""
        greedy = outputs.next_tokens.to_numpy().tolist()
        needs_logits = any(request.context.params.needs_logits for request in batch)
        logits_BV = outputs.next_token_logits.to_numpy() if needs_logits else None
        for row, request in enumerate(batch):
            params = request.context.params
            if request.logits is not None or not request.context.completes_with_this_step:
                yield None
            elif logits_BV is None or not params.needs_logits:
                yield Choice(greedy[row])
            else:
                yield Choice.from_logits(request.sampler, logits_BV[row], params.logprobs)

    def _commit(self, request: Request, choice: Choice | None) -> None:
        """What the step computed is in the cache; its token, if any, goes to the request."""
        self.scheduler.commit(request.context)
        if choice is not None:
            chunk = request.accept(choice, self.eos_token_ids, self.max_length)
            request.chunks.append(chunk)
            if chunk.finish_reason is not None:
                self._finish(request)
        elif request.logits is not None and request.context.remaining == 0:
            self._finish(request)

    def _finish(self, request: Request) -> None:
        self.scheduler.finish(request.context)
        del self._requests[request.context.request_id]
        request.is_done = True
