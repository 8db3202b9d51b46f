"""Waits of requests for each other: the scheduler alone, with random crowds and with cases that once were slow.

    python benchmarks/scheduling.py [--seeds N]

No model runs: all steps count as equally long, and waits are counted in steps. docs/scheduling.md states the bounds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import click
import numpy as np
from max.driver import CPU
from max.dtype import DType
from max.graph import DeviceRef

from kv_cache import KVCacheManager, KVCacheParams, PageGroup
from pipelines.context import ImageSpan, TextContext
from pipelines.engine.scheduler import MAX_OVERTAKEN_STEPS, Scheduler
from pipelines.sampling.params import SamplingParams

WINDOW, IMAGE_TOKENS = 200, 64


@dataclass(eq=False)
class Request:
    """A simulated request. arrival, first_token, end: steps; cancel_at: the step before which it is cancelled."""

    num_prompt: int
    num_new: int
    images: Sequence[int] = ()
    arrival: int = 0
    cancel_at: int | None = None
    first_token: int | None = None
    end: int | None = None
    context: TextContext = field(init=False)

    def __post_init__(self) -> None:
        spans = [ImageSpan(start, start + IMAGE_TOKENS, np.zeros(1), bytes(32)) for start in self.images]
        params = SamplingParams(max_new_tokens=self.num_new)
        self.context = TextContext(str(id(self)), [1] * self.num_prompt, params, images=spans)


@dataclass
class Crowd:
    """Requests, and the limits of the scheduler and cache that serve them."""

    requests: list[Request]
    num_pages: int
    max_batch_size: int
    max_step_tokens: int

    def new_scheduler(self) -> Scheduler:
        """Creates a scheduler over a cache of one sliding and one full layer."""
        layer = {"num_layers": 1, "num_kv_heads": 1, "head_dim": 8, "dtype": DType.float32}
        groups = [
            PageGroup(name, devices=(DeviceRef.CPU(),), window=window, **layer)  # type: ignore[arg-type]
            for name, window in (("sliding", WINDOW), ("full", None))
        ]
        cache = KVCacheManager(
            KVCacheParams(tuple(groups)), {"sliding": self.num_pages, "full": self.num_pages}, [CPU()]
        )
        return Scheduler(cache, self.max_batch_size, self.max_step_tokens)

    @property
    def bound(self) -> int:
        """Number of steps after the last arrival within which all requests must have ended."""
        half = max(1, (self.max_step_tokens - self.max_batch_size) // 2)
        steps = sum(-(-(r.num_prompt + r.num_new) // half) + r.num_new + 2 * len(r.images) + 1 for r in self.requests)
        return 2 * steps + MAX_OVERTAKEN_STEPS * len(self.requests)


@dataclass
class Result:
    """The result of a simulation.

    num_steps: steps until all requests had ended. max_kind_wait: the most steps in a row for which work of one kind
    (text or images) waited for the other.
    """

    num_steps: int
    max_kind_wait: int
    num_preemptions: int


def simulate(crowd: Crowd, max_steps: int = 10**6) -> Result:
    """Runs a crowd to its end.

    Raises:
        AssertionError: The cache is inconsistent, a step is empty though there is work, or max_steps do not suffice.
    """
    scheduler, step, kind_waits, max_kind_wait = crowd.new_scheduler(), 0, {True: 0, False: 0}, 0
    arrivals = sorted(crowd.requests, key=lambda request: request.arrival)
    by_context = {request.context: request for request in crowd.requests}
    while arrivals or scheduler.has_work:
        assert step < max_steps, f"{len(scheduler.waiting)} requests wait and {len(scheduler.running)} run"
        while arrivals and arrivals[0].arrival <= step:
            scheduler.add(arrivals.pop(0).context)
        for request in crowd.requests:
            if request.cancel_at == step and request.end is None and request.arrival <= step:
                scheduler.remove(request.context)
                request.end = step
        plan = scheduler.plan()
        assert plan or not scheduler.has_work, "there is work, but the step is empty"
        for kind in _advance(scheduler, plan.contexts, by_context, step, kind_waits):
            max_kind_wait = max(max_kind_wait, kind_waits[kind])
        scheduler.cache.check()
        step += 1
    assert scheduler.cache.usage == 0
    return Result(step, max_kind_wait, scheduler.num_preemptions)


def _advance(
    scheduler: Scheduler,
    contexts: Sequence[TextContext],
    by_context: dict[TextContext, Request],
    step: int,
    kind_waits: dict[bool, int],
) -> list[bool]:
    """Commits a step as the engine does; returns the kinds (whether images) for which there was work."""
    kinds = {context.next_image is not None for context in scheduler.running}
    ran = {context.next_image is not None for context in contexts}
    for kind in (True, False):
        kind_waits[kind] = kind_waits[kind] + 1 if kind in kinds and kind not in ran else 0
    assert len(ran) <= 1 and len(contexts) <= scheduler.max_batch_size
    assert sum(context.num_scheduled_tokens for context in contexts) <= scheduler.max_step_tokens
    for context in contexts:
        request = by_context[context]
        scheduler.commit(context)
        if not context.num_remaining_tokens:
            context.tokens.append(1)
            request.first_token = step if request.first_token is None else request.first_token
            if context.num_output_tokens == request.num_new:
                scheduler.remove(context)
                request.end = step
    return list(kinds)


def random_crowd(seed: int) -> Crowd:
    """Generates a crowd with arrivals, cancellations, images and long prompts, and few pages and rows."""
    rng = random.Random(seed)
    budget, rows = rng.choice([64, 100, 256, 512]), rng.choice([1, 2, 4, 8])
    num_pages = rng.choice([12, 20, 60])
    limit = min(num_pages - 5, 24) * 128  # so that each fits alone
    requests = []
    for _ in range(60):
        num_new = rng.randrange(1, 80)
        longest = limit - num_new if rng.random() < 0.2 else 200
        num_prompt = rng.randrange(IMAGE_TOKENS + 10, longest)
        images = [5] if rng.random() < 0.3 else []
        cancel_at = rng.randrange(400) if rng.random() < 0.15 else None
        requests.append(Request(num_prompt, num_new, images, rng.randrange(150), cancel_at))
    return Crowd(requests, num_pages, rows, budget)


def cases() -> dict[str, tuple[Crowd, Request]]:
    """Cases that were slow while all was first come, first served, and the request in each whose wait counts."""
    image = Request(100, 5, [10], arrival=3)
    behind_text = Crowd([Request(20, 500), image], 100, 8, 512)
    short = Request(10, 5, arrival=5)
    behind_prompt = Crowd([Request(100_000, 2), short], 1000, 8, 512)
    small = Request(10, 5, arrival=2)
    lacking = Crowd([Request(1000, 2000), Request(3000, 5, arrival=1), small], 30, 8, 512)
    return {
        "an image behind a text of 500 tokens": (behind_text, image),
        "10 tokens behind a prompt of 100,000": (behind_prompt, short),
        "10 tokens behind one that lacks pages": (lacking, small),
    }


@click.command()
@click.option("--seeds", default=200, show_default=True, help="Random crowds to run.")
def main(seeds: int) -> None:
    """Print the waits of requests for each other, in steps."""
    for name, (crowd, request) in cases().items():
        simulate(crowd)
        assert request.first_token is not None
        print(f"{name}: steps to the first token: {request.first_token - request.arrival + 1}")
    results = [(crowd, simulate(crowd)) for crowd in map(random_crowd, range(seeds))]
    share = max(result.num_steps / (crowd.bound + 150) for crowd, result in results)
    waits = max(result.max_kind_wait for _, result in results)
    preemptions = sum(result.num_preemptions for _, result in results)
    print(f"{seeds} random crowds of 60: all end, within {share:.0%} of the bound; {preemptions} preemptions")
    print(f"most steps in a row for which text or images wait for the other: {waits}")


if __name__ == "__main__":
    main()
