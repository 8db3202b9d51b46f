"""The step loop: plan, launch, collect, commit, until every request has ended."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kv_cache import KVCacheManager
from pipelines.context import FinishReason, TextChunk, TextContext
from pipelines.engine.scheduler import Scheduler
from pipelines.engine.step import LaunchedStep, RowOutputs
from pipelines.pipeline_model import PipelineModel


@dataclass
class EngineStats:
    """Totals since the start; a step with any prefill in it counts as prefill."""

    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @contextmanager
    def measure(self, contexts: Sequence[TextContext]) -> Iterator[None]:
        """Adds the step that runs meanwhile, unless it is interrupted."""
        num_tokens = sum(context.num_scheduled_tokens for context in contexts)
        is_prefill = num_tokens > len(contexts) or any(context.num_output_tokens == 0 for context in contexts)
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

    `submit` and `cancel` may be called from any thread and at any time, also from within a step: they take effect
    between steps. max_length: tokens of prompt and output that a request may have.
    """

    def __init__(
        self,
        model: PipelineModel,
        cache: KVCacheManager,
        *,
        max_length: int,
        max_batch_size: int,
        max_step_tokens: int,
    ) -> None:
        self.model, self.cache, self.max_length = model, cache, max_length
        self.scheduler = Scheduler(cache, max_batch_size, max_step_tokens)
        self.stats = EngineStats()
        self._submitted: deque[TextContext] = deque()
        self._cancelled: deque[TextContext] = deque()
        self._is_stepping = threading.Lock()

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended yet."""
        return bool(self._submitted) or self.scheduler.has_work

    def check(self, context: TextContext) -> None:
        """Raises InputError for a request that could never fit in the cache."""
        self.scheduler.check(context, self.max_length)

    def submit(self, context: TextContext) -> None:
        """Queues a request that has passed `check`."""
        self._submitted.append(context)

    def cancel(self, context: TextContext) -> None:
        """Marks a request as given up; it ends before the next step, unless it has ended already."""
        context.is_cancelled = True
        self._cancelled.append(context)
        if self._is_stepping.acquire(blocking=False):  # else the step does it when it is over
            with _released(self._is_stepping):
                self._apply_marks()

    def step(self) -> None:
        """Runs one step of all requests. A request that fails ends with its error; the others go on."""
        self._is_stepping.acquire()
        with _released(self._is_stepping):
            self._apply_marks()
            plan = self.scheduler.plan()
            if plan:
                with self.stats.measure(plan.contexts):
                    self._run(plan.contexts)
            self._apply_marks()

    def _apply_marks(self) -> None:
        """Lets in the requests that were submitted, and ends those that were cancelled."""
        while self._submitted:
            self.scheduler.add(self._submitted.popleft())
        while self._cancelled:
            context = self._cancelled.popleft()
            if not context.is_finished:
                self._end(context, "cancelled")

    def _run(self, contexts: Sequence[TextContext]) -> None:
        """Runs the rows of a step; if that fails, each half of them by itself, until the culprit is alone."""
        try:
            launched = LaunchedStep.launch(self.model, self.cache, contexts)
            rows = list(launched.collect())
        except Exception as error:
            if len(contexts) == 1:
                self._end(contexts[0], "error", error)
                return
            middle = len(contexts) // 2
            self._run(contexts[:middle])
            self._run(contexts[middle:])
            return
        # A row is sampled when those before it are committed: if that is interrupted, no random number is lost.
        for context, row in rows:
            self._commit(context, row)

    def _commit(self, context: TextContext, row: RowOutputs) -> None:
        """Counts the row's tokens as computed and lets the request have its logits."""
        self.scheduler.commit(context)
        try:
            chunk = None if context.consumer is None else context.consumer.consume(context, row)
            context.update_page_hashes()
        except Exception as error:
            self._end(context, "error", error)
            return
        if chunk is not None:
            if chunk.finish_reason is not None:
                self._end(context, chunk.finish_reason)
            context.chunks.append(chunk)

    def _end(self, context: TextContext, reason: FinishReason, error: Exception | None = None) -> None:
        self.scheduler.remove(context)
        context.finish(reason, error)
        if reason in ("cancelled", "error"):
            context.chunks.append(TextChunk("", finish_reason=reason, error=error))


@contextmanager
def _released(lock: threading.Lock) -> Iterator[None]:
    """Releases a lock that is held, however the block ends."""
    try:
        yield
    finally:
        lock.release()
