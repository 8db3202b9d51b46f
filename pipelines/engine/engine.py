"""The engine: runs steps of plan, launch, choose, collect and commit until every request has ended.

With a sampler on the device the steps overlap: a step is launched before the one before it is collected, and builds on
tokens that are on the device alone. The order is that of the device's queue: the forward pass of step n + 1, then, once
the host has collected step n and knows the masks, the sampler of step n + 1.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kv_cache import KVCacheManager
from pipelines.context import FinishReason, TextChunk, TextContext
from pipelines.engine.scheduler import Scheduler, StepPlan
from pipelines.engine.step import LaunchedStep, RowOutputs, TokenSampler
from pipelines.errors import step_error
from pipelines.pipeline_model import PipelineModel

_log = logging.getLogger("pipelines.engine")


@dataclass
class EngineStats:
    """Totals of all steps so far; a step with any prefill in it counts as prefill.

    steps_by_tokens: number of steps by the tokens that they computed. It may be read in any thread, as one copy.
    num_failed_steps: steps in flight whose failure had all requests computed again.
    """

    steps_by_tokens: Counter[int] = field(default_factory=Counter)
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_failed_steps: int = 0
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
        self.add(num_tokens, is_prefill, time.perf_counter() - start)

    def add(self, num_tokens: int, is_prefill: bool, seconds: float) -> None:
        """Adds a step; of two that overlap, the second counts from the end of the first."""
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
    a new chunk, the last one included, in the thread that steps or cancels. sampler: chooses tokens on the device,
    where steps overlap; None: the host chooses, and each step is collected at once.
    """

    def __init__(
        self,
        model: PipelineModel,
        cache: KVCacheManager,
        *,
        max_length: int,
        max_batch_size: int,
        max_step_tokens: int,
        sampler: TokenSampler | None = None,
    ) -> None:
        self.model, self.cache = model, cache
        self.scheduler = Scheduler(cache, max_batch_size, max_step_tokens, max_length)
        self._sampler = sampler
        self._in_flight: LaunchedStep | None = None
        self._collected_at = 0.0
        self._suspects: dict[TextContext, int] = {}  # requests of a step that failed, with their tokens then
        self.stats = EngineStats()
        self.on_chunk: Callable[[TextContext], None] = lambda context: None
        self._submitted: deque[TextContext] = deque()
        self._marked: deque[tuple[TextContext, FinishReason]] = deque()
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
        self.scheduler.check(context)

    def submit(self, context: TextContext) -> None:
        """Queues a request that has passed `check`."""
        context.times.submitted = time.monotonic()
        self._submitted.append(context)

    def cancel(self, context: TextContext, reason: FinishReason = "cancelled") -> None:
        """Marks a request: it ends before the next step, unless it has ended already.

        reason: "stop" where its answer is complete, though it could go on.
        """
        self._marked.append((context, reason))
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
                self._cut(context, reason, error)

    def apply_marks(self) -> None:
        """Ends the requests that `cancel` has marked since the last step."""
        with self._is_stepping:
            self._apply_marks()

    def step(self) -> None:
        """Runs one step of all requests. A request that fails ends with its error; the others go on."""
        with self._is_stepping:
            self._apply_marks()
            if self._sampler is None or self._has_suspects():
                self._step_alone()
            else:
                self._step_overlapped(self._sampler)
            self._apply_marks()

    def _step_alone(self) -> None:
        """Runs a step from its plan to its commits."""
        plan = self.scheduler.plan()
        if plan:
            with self.stats.measure(plan):
                self._run(plan)

    def _step_overlapped(self, sampler: TokenSampler) -> None:
        """Launches the next step, collects the one in flight, then has the tokens of the launched one chosen."""
        previous, self._in_flight = self._in_flight, None
        plan = self.scheduler.plan(is_in_flight=previous is not None)
        try:
            launched = self._launch(plan, previous) if plan else None
            if previous is not None:
                self._collect(previous)
            if launched is not None and launched.unfinished_rows:
                launched.choose(sampler)
                launched.mark_pending()
                self._in_flight = launched
        except BaseException as error:
            _log.warning("a step failed, its requests are computed again: %s: %s", type(error).__name__, error)
            self._recover([*plan.contexts, *(row.context for row in (previous.rows if previous else ()))])
            if not isinstance(error, Exception):
                raise

    def _launch(self, plan: StepPlan, previous: LaunchedStep | None) -> LaunchedStep:
        """Launches a step, which counts as computed for those after it."""
        launched = LaunchedStep.launch(self.model, self.cache, plan, None if previous is None else previous.chosen)
        for context in plan.contexts:
            self.scheduler.commit(context)
        return launched

    def _collect(self, step: LaunchedStep) -> None:
        rows = step.collect()
        now = time.perf_counter()
        self.stats.add(step.num_tokens, step.is_prefill, now - max(step.launched_at, self._collected_at))
        self._collected_at = now
        for row in rows:
            self._commit(row)

    def _recover(self, involved: Iterable[TextContext]) -> None:
        """Has all requests computed again after a step failed, step by step until those of it have come further.

        Whoever is the reason fails again there, and alone.
        """
        self.stats.num_failed_steps += 1
        self._suspects |= {context: len(context.tokens) for context in involved}
        self.scheduler.preempt_all()
        self.cache.forget_prefixes()

    def _has_suspects(self) -> bool:
        """Whether a request that was in a failed step has not come further since."""
        if self._suspects:
            self._suspects = {c: n for c, n in self._suspects.items() if not c.is_finished and len(c.tokens) <= n}
        return bool(self._suspects)

    def _apply_marks(self) -> None:
        """Queues the requests that were submitted, and ends those that are marked."""
        while self._submitted:
            self.scheduler.add(self._submitted.popleft())
        while self._marked:
            context, reason = self._marked.popleft()
            if not context.is_finished:
                self._cut(context, reason)

    def _run(self, plan: StepPlan) -> None:
        """Runs the rows of a step; if it fails, runs each half by itself, until the failing request is alone."""
        try:
            launched = LaunchedStep.launch(self.model, self.cache, plan)
            launched.choose(self._sampler)
            rows = launched.collect()
        except Exception as error:
            contexts = plan.contexts
            if len(contexts) == 1:
                self._cut(contexts[0], "error", step_error(error))
                return
            middle = len(contexts) // 2
            self._run(StepPlan(contexts[:middle]))
            self._run(StepPlan(contexts[middle:]))
            return
        # A choice counts when its row is committed: if that is interrupted, no random number is lost.
        for row in rows:
            self._commit(row)

    def _commit(self, row: RowOutputs) -> None:
        """Counts the row's tokens as computed and passes its logits to the request's consumer."""
        context = row.context
        self.scheduler.commit(context)
        try:
            chunk = None if context.consumer is None else context.consumer.consume(context, row)
            context.update_page_hashes()
        except Exception as error:
            self._cut(context, "error", error)
            return
        if chunk is not None:
            if chunk.tokens:
                context.times.note_token()
            if chunk.finish_reason is not None:
                self._end(context, chunk.finish_reason)
            context.chunks.append(chunk)
            self.on_chunk(context)

    def _cut(self, context: TextContext, reason: FinishReason, error: Exception | None = None) -> None:
        """Ends a request that no token of its own has ended, with an empty chunk that says so."""
        self._end(context, reason, error)
        context.chunks.append(TextChunk("", finish_reason=reason, error=error))
        self.on_chunk(context)

    def _end(self, context: TextContext, reason: FinishReason, error: Exception | None = None) -> None:
        self.scheduler.remove(context)
        context.finish(reason, error)
