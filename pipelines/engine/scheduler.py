"""What runs in the next step: one token budget for decodes and prefill chunks alike.

First come, first served: whoever came earlier gets its tokens and pages first, a new request only what is left, and it
is admitted when there are pages for all its tokens. When a running request finds no page, the youngest is preempted:
its pages go back, it waits at the head of the queue and is computed again later, from its prompt and all it had
generated, which gives the same text. So the oldest request advances in every step.
"""

from __future__ import annotations

from collections import deque

from kv_cache import KVCacheManager
from pipelines.context import TextContext
from pipelines.errors import InputError


class Scheduler:
    """Requests, oldest first, the running before the waiting, and the pages they hold.

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
        image_tokens = max((image.end - image.start for image in context.images), default=0)
        if image_tokens > self.max_step_tokens:
            raise InputError(
                f"an image has {image_tokens} tokens, which one step must compute, but a step has at most "
                f"{self.max_step_tokens}: raise max_batch_tokens"
            )

    def add(self, context: TextContext) -> None:
        """Queues a request."""
        self.waiting.append(context)

    def schedule(self) -> list[TextContext]:
        """The rows of the next step, each with `num_scheduled` set and its pages reserved; some, if there is work.

        All compute text or all compute images, as the first of them does: the two are different graphs.
        """
        batch: list[TextContext] = []
        budget, row = self.max_step_tokens, 0
        while budget and (row < len(self.running) or self._admit()):
            context = self.running[row]
            count = context.next_count(budget)
            is_alike = not batch or (context.next_image is None) == (batch[0].next_image is None)
            if count and is_alike:
                if not self._reserve(context, count):
                    break
                batch.append(context)
                budget -= count
            row += 1
        return batch

    def commit(self, context: TextContext) -> None:
        """The step has run: its chunk is in the cache."""
        start, end = context.num_computed, context.num_computed + context.num_scheduled
        self.cache.commit(context.request_id, context.cache_keys(start, end))
        context.advance()

    def finish(self, context: TextContext) -> None:
        """The request is complete, or no longer wanted: its pages go back."""
        if context in self.running:
            self.running.remove(context)
            self.cache.release(context.request_id)
        else:
            self.waiting.remove(context)

    def _reserve(self, context: TextContext, count: int) -> bool:
        """Pages for the next chunk, if necessary those of the youngest; False: that was the context itself."""
        context.num_scheduled = count
        while not self.cache.reserve(context.request_id, count):
            if self._preempt_youngest() is context:
                return False
        return True

    def _admit(self) -> bool:
        """Lets the first of those that wait run, if there is a row and pages for all its tokens."""
        if not self.waiting or len(self.running) == self.max_batch_size:
            return False
        context = self.waiting[0]
        keys = context.cache_keys(0, len(context.tokens))
        context.num_computed = self.cache.admit(context.request_id, keys, context.salt)
        if not self.cache.has_room(context.request_id, len(context.tokens), self.max_step_tokens):
            self.cache.release(context.request_id)
            context.reset()
            return False
        self.running.append(self.waiting.popleft())
        return True

    def _preempt_youngest(self) -> TextContext:
        context = self.running.pop()
        self.cache.release(context.request_id)
        context.reset()
        self.waiting.appendleft(context)
        self.num_preemptions += 1
        return context
