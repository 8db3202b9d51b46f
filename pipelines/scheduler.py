"""What runs in the next step: one token budget for decodes and prefill chunks alike.

Rows that decode come first, then prompts already begun, then new ones while pages and rows last. When a running
request finds no page, the youngest is preempted: its pages go back, it waits at the head of the queue and is computed
again later, from its prompt and all it had generated, which gives the same text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from kv_cache import KVCacheManager
from pipelines.context import TextContext
from pipelines.errors import InputError


class Scheduler:
    """Requests, oldest first, and the pages they hold.

    max_batch_size: rows of a step. max_step_tokens: tokens of a step. num_preemptions counts those so far.
    """

    def __init__(self, cache: KVCacheManager, max_batch_size: int, max_step_tokens: int) -> None:
        self.cache, self.max_batch_size, self.max_step_tokens = cache, max_batch_size, max_step_tokens
        self.waiting: deque[TextContext] = deque()
        self.running: list[TextContext] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def check(self, context: TextContext, max_length: int) -> None:
        """Raises InputError for a request, of at most max_length tokens, that would not fit even alone."""
        needed = min(max_length, context.max_total_tokens(max_length))
        capacity = self.cache.capacity_tokens(self.max_step_tokens)
        if needed > capacity:
            raise InputError(
                f"a request of {needed} tokens (prompt and new ones) does not fit in a KV cache of {capacity}: "
                "raise --kv-cache-memory, or lower --max-new-tokens or --max-length"
            )

    def add(self, context: TextContext) -> None:
        """Queues a request."""
        self.waiting.append(context)

    def schedule(self, budget: int) -> list[TextContext]:
        """The rows of the next step, at most `budget` tokens, each with `num_scheduled` set and its pages reserved."""
        batch: list[TextContext] = []
        for context in self._by_priority():
            if budget == 0 or context not in self.running:  # preempted by one before it
                continue
            if count := self._reserve(context, budget, batch):
                context.num_scheduled = count
                batch.append(context)
                budget -= count
        while budget and self.waiting and len(self.running) < self.max_batch_size:
            context = self.waiting[0]
            count = self._admit(context, budget)
            if not count:
                break
            self.running.append(self.waiting.popleft())
            context.num_scheduled = count
            batch.append(context)
            budget -= count
        return batch

    def commit(self, context: TextContext) -> None:
        """The step has run: its chunk is in the cache."""
        self.cache.commit(context.request_id, context.next_chunk)
        context.advance()

    def finish(self, context: TextContext) -> None:
        """The request is complete, or no longer wanted: its pages go back."""
        if context in self.running:
            self.running.remove(context)
            self.cache.release(context.request_id)
        else:
            self.waiting.remove(context)

    def _by_priority(self) -> Iterator[TextContext]:
        decoding = [c for c in self.running if c.remaining == 1]
        return iter(decoding + [c for c in self.running if c.remaining > 1])

    def _reserve(self, context: TextContext, budget: int, batch: list[TextContext]) -> int:
        """Pages for the next chunk of a running request: tokens that may be computed, 0 if it was itself preempted."""
        count = min(context.remaining, budget)
        while not self.cache.reserve(context.request_id, count):
            victim = next((c for c in reversed(self.running) if c not in batch), context)
            self._preempt(victim)
            if victim is context:
                return 0
        return count

    def _admit(self, context: TextContext, budget: int) -> int:
        """Pages for the first chunk of a waiting request; on 0 nothing was taken."""
        context.num_computed = self.cache.admit(context.request_id, context.tokens)
        count = min(context.remaining, budget)
        if self.cache.reserve(context.request_id, count):
            return count
        self.cache.release(context.request_id)
        context.reset()
        return 0

    def _preempt(self, context: TextContext) -> None:
        self.running.remove(context)
        self.cache.release(context.request_id)
        context.reset()
        self.waiting.appendleft(context)
        self.num_preemptions += 1
