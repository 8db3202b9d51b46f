"""The requests of the next step, and the pages they hold.

Who came earlier is served first, within these bounds, so that nobody waits for long (docs/scheduling.md has them all):

- Every running request whose turn it is gets a token; what is left of the step's budget goes to prompts. While several
  prompts are being computed, the oldest takes half of it and the shortest the rest, so that neither a long prompt nor a
  stream of short ones keeps the others waiting.
- A step computes either text or images, which are different graphs; while there is work of both kinds they take turns.
- A request is admitted when there are pages for all its tokens. Later ones may overtake one that lacks pages, for
  MAX_OVERTAKEN_STEPS steps; from then on nobody else is admitted before it.

When a running request finds no page, the youngest is preempted: its pages go back, it waits in the place of its arrival
and is computed again later, from its prompt and all its output, which gives the same text. So the oldest advances in
every step that is its kind's turn.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from kv_cache import KVCacheManager
from pipelines.context import TextContext
from pipelines.errors import InputError

MAX_OVERTAKEN_STEPS = 64
"""Steps in which later requests may be admitted before one that lacks pages."""
MAX_BLOCKED = 16
"""Requests that lack pages and may be overtaken at a time; a step does not look further down the queue."""


@dataclass
class StepPlan:
    """The rows of one step, each with `num_scheduled_tokens` and its pages allocated; all text, or all images."""

    contexts: list[TextContext] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.contexts)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(context.num_scheduled_tokens for context in self.contexts)

    @property
    def is_prefill(self) -> bool:
        """Whether any row computes tokens of its prompt."""
        return any(context.num_computed_tokens < context.num_prompt_tokens for context in self.contexts)


class Scheduler:
    """Requests in the order of their arrival, running and waiting.

    max_batch_size: rows of a step. max_step_tokens: tokens of a step. num_preemptions: those so far.
    """

    def __init__(self, cache: KVCacheManager, max_batch_size: int, max_step_tokens: int) -> None:
        self.cache, self.max_batch_size, self.max_step_tokens = cache, max_batch_size, max_step_tokens
        self.waiting: list[TextContext] = []
        self.running: list[TextContext] = []
        self.num_preemptions = 0
        self._num_arrivals = 0
        self._last_was_images = False
        self._num_blocked_steps: Counter[TextContext] = Counter()  # of those that wait, for lack of pages

    @property
    def has_work(self) -> bool:
        """Whether a request runs or waits."""
        return bool(self.waiting or self.running)

    def check(self, context: TextContext, max_length: int) -> None:
        """Raises InputError for a request, of at most max_length tokens, that would not fit even alone."""
        needed = min(max_length, context.max_total_tokens(max_length))
        capacity = self.cache.capacity_tokens(self.max_step_tokens)
        if needed > capacity:
            raise InputError(
                f"a request of {needed} tokens (prompt and new ones) does not fit in a KV cache of {capacity}: "
                "raise kv_cache_memory, or lower max_new_tokens or max_length"
            )
        image_tokens = max((image.end - image.start for image in context.images), default=0)
        if image_tokens > self.max_step_tokens:
            raise InputError(
                f"an image has {image_tokens} tokens, which one step must compute, but a step has at most "
                f"{self.max_step_tokens}: raise max_batch_tokens"
            )

    def add(self, context: TextContext) -> None:
        """Queues a request."""
        context.arrival = self._num_arrivals
        self._num_arrivals += 1
        context.update_page_hashes()
        self.waiting.append(context)

    def plan(self) -> StepPlan:
        """The next step; empty only if there is no work."""
        self._admit()
        candidates = self._candidates()
        shares = self._shares(candidates)
        plan = StepPlan()
        for context in candidates:
            if context in self.running and shares[context]:
                context.num_scheduled_tokens = shares[context]
                if self._allocate(context, plan):
                    plan.contexts.append(context)
        return plan

    def commit(self, context: TextContext) -> None:
        """Counts what the step computed of a request; its pages can be found by their content."""
        assert context.pages is not None
        hashes = () if context.page_hashes is None else context.page_hashes.hashes
        self.cache.commit(context.pages, context.num_scheduled_tokens, hashes)
        context.num_scheduled_tokens = 0

    def remove(self, context: TextContext) -> None:
        """Takes a request out, wherever it is, and its pages back."""
        if context in self.running:
            self.running.remove(context)
            self._release(context)
        elif context in self.waiting:
            self.waiting.remove(context)
            self._num_blocked_steps.pop(context, None)

    def _candidates(self) -> Sequence[TextContext]:
        """The running requests whose turn it is, oldest first: those of one kind, as many as there are tokens."""
        images = [context for context in self.running if context.next_image is not None]
        text = [context for context in self.running if context.next_image is None]
        if images and text:
            self._last_was_images = not self._last_was_images
        elif self.running:
            self._last_was_images = bool(images)
        return (images if self._last_was_images else text)[: self.max_step_tokens]

    def _shares(self, candidates: Sequence[TextContext]) -> dict[TextContext, int]:
        """The tokens that each candidate gets of the step's budget."""
        if self._last_was_images:
            return self._whole_images(candidates)
        shares = dict.fromkeys(candidates, 1)
        prompts = [context for context in candidates if context.num_ready_tokens > 1]
        spare = self.max_step_tokens - len(candidates)
        oldest_first, shortest_first = prompts[:1], sorted(prompts[1:], key=attrgetter("num_remaining_tokens"))
        limit = spare if not shortest_first else -(-spare // 2)
        for context, most in [
            *((c, limit) for c in oldest_first),
            *((c, spare) for c in shortest_first + oldest_first),
        ]:
            more = max(0, min(context.num_ready_tokens - shares[context], most, spare))
            shares[context] += more
            spare -= more
        return shares

    def _whole_images(self, candidates: Sequence[TextContext]) -> dict[TextContext, int]:
        """All of an image for each candidate, for as many as fit; none for the others."""
        shares, spare = {}, self.max_step_tokens
        for context in candidates:
            count = context.num_ready_tokens
            shares[context] = count if count <= spare else 0
            spare -= shares[context]
        return shares

    def _allocate(self, context: TextContext, plan: StepPlan) -> bool:
        """Pages for the scheduled tokens, if necessary those of the youngest; False: that was the context itself."""
        assert context.pages is not None
        while not self.cache.allocate(context.pages, context.num_scheduled_tokens):
            youngest = self.running.pop()
            self.num_preemptions += 1
            self._release(youngest)
            insort(self.waiting, youngest, key=attrgetter("arrival"))
            if youngest is context:
                return False
        return True

    def _admit(self) -> None:
        """Lets waiting requests run, for as many as there are rows and pages for all their tokens."""
        num_blocked = 0
        for context in list(self.waiting):
            if len(self.running) == self.max_batch_size or num_blocked == MAX_BLOCKED:
                return
            if self._open(context):
                self.waiting.remove(context)
                self._num_blocked_steps.pop(context, None)
                insort(self.running, context, key=attrgetter("arrival"))
            else:
                num_blocked += 1
                self._num_blocked_steps[context] += 1
                if self._num_blocked_steps[context] > MAX_OVERTAKEN_STEPS:
                    return

    def _open(self, context: TextContext) -> bool:
        """Registers a request in the cache, with the prefix that is there; False if there are not enough pages."""
        reuses_prefix = context.page_hashes is not None and (context.consumer is None or context.consumer.reuses_prefix)
        hashes = context.page_hashes.hashes if context.page_hashes is not None and reuses_prefix else ()
        pages = self.cache.open(hashes, len(context.tokens))
        promised = [(other.pages, len(other.tokens)) for other in self.running if other.pages is not None]
        if not self.cache.can_allocate([*promised, (pages, len(context.tokens))], self.max_step_tokens):
            self.cache.release(pages)
            return False
        context.pages = pages
        return True

    def _release(self, context: TextContext) -> None:
        assert context.pages is not None
        self.cache.release(context.pages)
        context.pages, context.num_scheduled_tokens = None, 0
