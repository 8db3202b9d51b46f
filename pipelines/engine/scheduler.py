"""The scheduler: chooses the requests of the next step and allocates their pages.

Requests are served in the order of arrival, within these rules, which bound every wait (docs/scheduling.md):

- Every running request whose turn it is gets a token; the rest of the step's budget goes to prompts. While several
  prompts are being computed, the oldest takes half of it and the shortest the other half, so that neither a long prompt
  nor a stream of short ones keeps the others waiting.
- A step computes either text or images, which are different graphs; while there is work for both they take turns.
- A request is admitted when there are pages for all its tokens. Later ones may overtake one that lacks pages, for
  MAX_OVERTAKEN_STEPS steps; from then on no other request is admitted before it.

When a running request finds no page, the youngest is preempted: its pages are freed, it waits in the place of its
arrival and is computed again later, from its prompt and all its output, which gives the same text. So the oldest
advances in every step that is its turn.
"""

from __future__ import annotations

import sys
import time
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from kv_cache import KVCacheManager
from pipelines.context import TextContext
from pipelines.errors import InputError

MAX_OVERTAKEN_STEPS = 64
"""Steps in which later requests may be admitted before one that lacks pages."""
MAX_BLOCKED = 16
"""Requests that may lack pages and be overtaken at a time; a step does not look further down the queue."""


@dataclass
class StepPlan:
    """The rows of one step, each with `num_scheduled_tokens` and its pages allocated; all text, or all images."""

    contexts: list[TextContext] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.contexts)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all rows."""
        return sum(context.num_scheduled_tokens for context in self.contexts)

    @property
    def is_prefill(self) -> bool:
        """Whether the step is more than one decode of each row."""
        return self.num_tokens > len(self.contexts) or any(
            context.num_tokens == context.num_prompt_tokens for context in self.contexts
        )


class Scheduler:
    """Running and waiting requests, each in the order of arrival.

    max_batch_size, max_step_tokens: the most rows and tokens of a step. max_length: the most tokens of a request.
    num_preemptions: count so far.
    num_prefix_query_tokens, num_prefix_hit_tokens: tokens of prompts, so far, that the cache was asked for when they
    were first scheduled, and those that it had.
    """

    def __init__(
        self, cache: KVCacheManager, max_batch_size: int, max_step_tokens: int, max_length: int = sys.maxsize
    ) -> None:
        self.cache, self.max_batch_size, self.max_step_tokens = cache, max_batch_size, max_step_tokens
        self.max_length = max_length
        self.waiting: list[TextContext] = []
        self.running: list[TextContext] = []
        self.num_preemptions = 0
        self.num_prefix_query_tokens = self.num_prefix_hit_tokens = 0
        self._num_arrivals = 0
        self._is_turn_of_images = False
        self._num_blocked_steps: Counter[TextContext] = Counter()  # of waiting requests that lack pages

    @property
    def has_work(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self.waiting or self.running)

    @property
    def contexts(self) -> list[TextContext]:
        """All requests that have not ended, running and waiting."""
        return [*self.running, *self.waiting]

    def check(self, context: TextContext) -> None:
        """Checks that a request fits in the cache and in a step when it is alone.

        Raises:
            InputError: It does not fit.
        """
        needed = context.max_total_tokens(self.max_length)
        capacity = self.cache.capacity_tokens(self.max_step_tokens)
        if needed > capacity:
            raise InputError(
                f"a request of {needed} tokens (prompt and new ones) does not fit in a KV cache of {capacity}: raise "
                "kv_cache_memory (--kv-cache-memory), or lower max_new_tokens (--max-new-tokens) or max_length "
                "(--max-length)"
            )
        image_tokens = max((image.end - image.start for image in context.images), default=0)
        if image_tokens > self.max_step_tokens:
            raise InputError(
                f"an image has {image_tokens} tokens, which one step must compute, but a step has at most "
                f"{self.max_step_tokens}: raise max_batch_tokens"
            )

    def add(self, context: TextContext) -> None:
        """Adds a request to those that wait."""
        context.arrival = self._num_arrivals
        self._num_arrivals += 1
        context.update_page_hashes()
        self.waiting.append(context)

    def plan(self, is_in_flight: bool = False) -> StepPlan:
        """Plans the next step, with its pages allocated.

        Args:
            is_in_flight: Whether the last step is not collected yet: then no request is preempted, and the plan may be
                empty although there is work, which means that the last step has to be collected first. Otherwise it is
                empty only if there is no work.
        """
        self._admit()
        ready = [context for context in self.running if self._can_continue(context)]
        self._take_turns(ready)
        candidates = [context for context in ready if context.is_at_image == self._is_turn_of_images]
        candidates = candidates[: self.max_step_tokens]  # who can have one token at least
        shares = self._shares(candidates)
        plan = StepPlan()
        for context in candidates:
            if context in self.running and shares[context]:
                context.num_scheduled_tokens = shares[context]
                if self._allocate(context, may_preempt=not is_in_flight):
                    plan.contexts.append(context)
                elif is_in_flight:
                    return self._withdraw([*plan.contexts, context])
        return plan

    def commit(self, context: TextContext) -> None:
        """Counts a request's scheduled tokens as computed; its full pages can be found by their content."""
        assert context.pages is not None
        hashes = () if context.page_hashes is None else context.page_hashes.hashes
        self.cache.commit(context.pages, context.num_scheduled_tokens, hashes)
        context.num_scheduled_tokens = 0

    def remove(self, context: TextContext) -> None:
        """Removes a running or waiting request and frees its pages."""
        if context in self.running:
            self.running.remove(context)
            self._release(context)
        elif context in self.waiting:
            self.waiting.remove(context)
            self._num_blocked_steps.pop(context, None)

    def preempt_all(self) -> None:
        """Preempts every running request."""
        while self.running:
            self._preempt_youngest()

    def _can_continue(self, context: TextContext) -> bool:
        """Whether there are tokens to compute: not if all are in flight, or if the pending one is surely the last."""
        is_last_pending = context.pending_row is not None and context.num_tokens >= context.max_total_tokens(
            self.max_length
        )
        return context.num_remaining_tokens > 0 and not is_last_pending

    def _take_turns(self, ready: Sequence[TextContext]) -> None:
        """Decides whether the step computes images or text: the other of the two, while there is work of both."""
        kinds = {context.is_at_image for context in ready}
        if len(kinds) == 2:
            self._is_turn_of_images = not self._is_turn_of_images
        elif kinds:
            (self._is_turn_of_images,) = kinds

    def _shares(self, candidates: Sequence[TextContext]) -> dict[TextContext, int]:
        """Number of tokens that each candidate gets of the step's budget."""
        if self._is_turn_of_images:
            return self._whole_images(candidates)
        shares = dict.fromkeys(candidates, 1)
        prompts = [context for context in candidates if context.num_ready_tokens > 1]
        spare = self.max_step_tokens - len(candidates)
        oldest_first, shortest_first = prompts[:1], sorted(prompts[1:], key=attrgetter("num_remaining_tokens"))
        limits = [-(-spare // 2) if shortest_first else spare] + [spare] * len(prompts)
        for context, limit in zip(oldest_first + shortest_first + oldest_first, limits, strict=False):
            more = max(0, min(context.num_ready_tokens - shares[context], limit, spare))
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

    def _allocate(self, context: TextContext, may_preempt: bool) -> bool:
        """Allocates pages for the scheduled tokens, preempting the youngest if necessary and allowed.

        Returns:
            Whether the request has them; otherwise it was preempted, or nobody was.
        """
        assert context.pages is not None
        while not self.cache.allocate(context.pages, context.num_scheduled_tokens):
            if not may_preempt or self._preempt_youngest() is context:
                return False
        return True

    @staticmethod
    def _withdraw(contexts: Iterable[TextContext]) -> StepPlan:
        """Empties a plan; the pages that were allocated for it stay with their requests."""
        for context in contexts:
            context.num_scheduled_tokens = 0
        return StepPlan()

    def _preempt_youngest(self) -> TextContext:
        youngest = self.running.pop()
        self.num_preemptions += 1
        self._release(youngest)
        insort(self.waiting, youngest, key=attrgetter("arrival"))
        return youngest

    def _admit(self) -> None:
        """Moves waiting requests to the running ones while there are rows, and pages for all their tokens."""
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
        """Registers a request in the cache, with the prefix that it already has; False if there are too few pages."""
        reuses_prefix = context.page_hashes is not None and (context.consumer is None or context.consumer.reuses_prefix)
        hashes = context.page_hashes.hashes if context.page_hashes is not None and reuses_prefix else ()
        pages = self.cache.open(hashes, len(context.tokens))
        promised = [(other.pages, other.num_tokens) for other in self.running if other.pages is not None]
        if not self.cache.can_allocate([*promised, (pages, len(context.tokens))], self.max_step_tokens):
            self.cache.release(pages)
            return False
        context.pages = pages
        if context.num_cached_tokens is None:
            self._note_first_admission(context, pages.num_computed_tokens, reuses_prefix)
        return True

    def _note_first_admission(self, context: TextContext, num_cached_tokens: int, reuses_prefix: bool) -> None:
        context.num_cached_tokens = num_cached_tokens
        context.times.scheduled = time.monotonic()
        if reuses_prefix:
            self.num_prefix_query_tokens += context.num_prompt_tokens
            self.num_prefix_hit_tokens += num_cached_tokens

    def _release(self, context: TextContext) -> None:
        assert context.pages is not None
        self.cache.release(context.pages)
        context.pages, context.num_scheduled_tokens, context.pending_row = None, 0, None
