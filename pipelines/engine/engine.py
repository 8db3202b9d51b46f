"""The engine: runs steps of plan, launch, collect and commit until every request has ended."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kv_cache import KVCacheManager
from pipelines.context import FinishReason, TextChunk, TextContext
from pipelines.engine.scheduler import Scheduler, StepPlan
from pipelines.engine.step import LaunchedStep, RowOutputs, choose_tokens
from pipelines.errors import step_error
from pipelines.pipeline_model import PipelineModel


@dataclass
class EngineStats:
    """Totals of all steps so far; a step with any prefill in it counts as prefill.

    steps_by_tokens: number of steps by the tokens that they computed. It may be read in any thread, as one copy.
    """

    steps_by_tokens: Counter[int] = field(default_factory=Counter)
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return self.steps_by_tokens.total()

    @contextmanager
    def measure(self, plan: StepPlan) -> Iterator[None]:
        """Adds the step that runs in the block, unless it is interrupted."""
        num_tokens, is_prefill = plan.num_tokens, plan.is_prefill
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.steps_by_tokens[num_tokens] += 1
        if is_prefill:
            self.num_prefill_tokens += num_tokens
            self.prefill_s += seconds
        else:
            self.num_decode_tokens += num_tokens
            self.decode_s += seconds


class Engine:
    """Runs requests together: each call of `step` advances all of them, whichever of them the caller waits for.

    `submit` and `cancel` may be called from any thread and at any time, also from within a step: they take effect
    between steps. max_length: tokens of prompt and output that a request may have. on_chunk: called when a request has
    a new chunk, the last one included, in the thread that steps or cancels.
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
        self.on_chunk: Callable[[TextContext], None] = lambda context: None
        self._submitted: deque[TextContext] = deque()
        self._cancelled: deque[TextContext] = deque()
        self._is_stepping = threading.Lock()

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended yet."""
        return bool(self._submitted) or self.scheduler.has_work

    def check(self, context: TextContext) -> None:
        """Checks that a request fits in the cache when it is alone.

        Raises:
            InputError: It could never be served.
        """
        self.scheduler.check(context, self.max_length)

    def submit(self, context: TextContext) -> None:
        """Queues a request that has passed `check`."""
        context.times.submitted = time.monotonic()
        self._submitted.append(context)

    def cancel(self, context: TextContext) -> None:
        """Marks a request as cancelled; it ends before the next step, unless it has ended already."""
        self._cancelled.append(context)
        if self._is_stepping.acquire(blocking=False):  # otherwise the step applies the mark at its end
            try:
                self._apply_marks()
            finally:
                self._is_stepping.release()

    def end_all(self, reason: FinishReason, error: Exception | None = None) -> None:
        """Ends every request between two steps: as cancelled, or with an error of the engine itself."""
        with self._is_stepping:
            self._apply_marks()
            for context in self.scheduler.contexts:
                self._end(context, reason, error)

    def apply_marks(self) -> None:
        """Ends the requests that were cancelled since the last step."""
        with self._is_stepping:
            self._apply_marks()

    def step(self) -> None:
        """Runs one step of all requests. A request that fails ends with its error; the others go on."""
        with self._is_stepping:
            self._apply_marks()
            plan = self.scheduler.plan()
            if plan:
                with self.stats.measure(plan):
                    self._run(plan.contexts)
            self._apply_marks()

    def _apply_marks(self) -> None:
        """Queues the requests that were submitted, and ends those that were cancelled."""
        while self._submitted:
            self.scheduler.add(self._submitted.popleft())
        while self._cancelled:
            context = self._cancelled.popleft()
            if not context.is_finished:
                self._end(context, "cancelled")

    def _run(self, contexts: Sequence[TextContext]) -> None:
        """Runs the rows of a step; if it fails, runs each half by itself, until the failing request is alone."""
        try:
            launched = LaunchedStep.launch(self.model, self.cache, contexts)
            for context in contexts:
                if context.consumer is not None:
                    context.consumer.prepare()
            rows = list(launched.collect())
            choose_tokens(rows)
        except Exception as error:
            if len(contexts) == 1:
                self._end(contexts[0], "error", step_error(error))
                return
            middle = len(contexts) // 2
            self._run(contexts[:middle])
            self._run(contexts[middle:])
            return
        # A choice counts when its row is committed: if that is interrupted, no random number is lost.
        for context, row in rows:
            self._commit(context, row)

    def _commit(self, context: TextContext, row: RowOutputs) -> None:
        """Counts the row's tokens as computed and passes its logits to the request's consumer."""
        self.scheduler.commit(context)
        try:
            chunk = None if context.consumer is None else context.consumer.consume(context, row)
            context.update_page_hashes()
        except Exception as error:
            self._end(context, "error", error)
            return
        if chunk is not None:
            if chunk.tokens:
                context.times.note_token()
            if chunk.finish_reason is not None:
                self._end(context, chunk.finish_reason)
            context.chunks.append(chunk)
            self.on_chunk(context)

    def _end(self, context: TextContext, reason: FinishReason, error: Exception | None = None) -> None:
        self.scheduler.remove(context)
        context.finish(reason, error)
        if reason in ("cancelled", "error"):
            context.chunks.append(TextChunk("", finish_reason=reason, error=error))
            self.on_chunk(context)
