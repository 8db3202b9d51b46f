"""Ten thousand random steps: no page lost, and every token reads back what was written for it."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest
from kv_caches import PAGE, NamedCache, new_cache

WINDOW = 200
NUM_PAGES = {"full": 26, "sliding": 18}
MAX_LENGTH = 900
NUM_STEPS = 10_000


class Driver:
    """Does at random what a scheduler does, and keeps in `memory` what a model would have written.

    A token's entry is a fingerprint of all tokens up to it, as its keys and values would depend on them.
    """

    def __init__(self, cache: NamedCache, seed: int) -> None:
        self.cache, self.rng = cache, random.Random(seed)
        self.memory = {name: np.zeros((count, PAGE), np.int64) for name, count in NUM_PAGES.items()}
        self.texts: dict[str, list[int]] = {}  # all that a request is to compute; it may have computed less
        self.history: list[list[int]] = []
        self.counts = dict.fromkeys(("admit", "extend", "reuse", "preempt", "release"), 0)

    def step(self) -> None:
        if not self.texts or (len(self.texts) < 8 and self.rng.random() < 0.15):
            self.admit()
        elif self.rng.random() < 0.04:
            self.drop(self.rng.choice(list(self.texts)), "release")
        else:
            self.extend(self.rng.choice(list(self.texts)))

    def admit(self) -> None:
        tokens = [self.rng.randrange(4) for _ in range(self.rng.randrange(1, MAX_LENGTH))]
        if self.history and self.rng.random() < 0.7:  # a fork of an earlier text
            parent = self.rng.choice(self.history)
            tokens = (parent[: self.rng.randrange(1, len(parent) + 1)] + tokens)[:MAX_LENGTH]
        self.counts["admit"] += 1
        request_id = str(self.counts["admit"])
        reused = self.cache.admit(request_id, tokens)
        assert reused % PAGE == 0 and reused < len(tokens)
        self.counts["reuse"] += reused > 0
        self.texts[request_id] = tokens
        self.history = [*self.history[-20:], tokens]

    def extend(self, request_id: str) -> None:
        text, done = self.texts[request_id], self.cache.length(request_id)
        count = min(len(text) - done, self.rng.choice((1, 5, 128, 300)))
        if count == 0:
            return self.drop(request_id, "release")
        if not self.cache.reserve(request_id, count):
            return self.drop(self.rng.choice(list(self.texts)), "preempt")
        self.read_and_write(request_id, count)
        self.cache.write(request_id, text[done : done + count])
        self.counts["extend"] += 1
        return None

    def drop(self, request_id: str, reason: str) -> None:
        self.cache.drop(request_id)
        del self.texts[request_id]
        self.counts[reason] += 1

    def read_and_write(self, request_id: str, count: int) -> None:
        """Like a model: every new token reads all that it sees, through the runtime inputs, and writes its own."""
        done = self.cache.length(request_id)
        prints = fingerprints(self.texts[request_id][: done + count])
        for name, (inputs,) in self.cache.inputs([request_id], [count]).items():
            num_kept = int(inputs.cache_lengths.to_numpy()[0])
            slots = np.arange(num_kept + count)
            pages = inputs.lookup_table.to_numpy()[0, slots // PAGE]
            num_seen = done if name == "full" else min(done, WINDOW - 1)
            seen = slots[num_kept - num_seen : num_kept]
            assert len(seen) == num_seen, "a page was dropped too early"
            read = self.memory[name][pages[seen], seen % PAGE]
            assert np.array_equal(read, prints[done - num_seen : done])
            self.memory[name][pages[num_kept:], slots[num_kept:] % PAGE] = prints[done:]


def fingerprints(tokens: list[int]) -> npt.NDArray[np.int64]:
    """One number a token, of it and all before it."""
    powers = np.multiply.accumulate(np.full(len(tokens), 6364136223846793005, np.uint64))
    return np.cumsum((np.array(tokens, np.uint64) + np.uint64(1)) * powers).astype(np.int64)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "caching", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "prefix-caching"]
)
def test_random_steps_lose_no_page_and_no_token(caching: bool, seed: int) -> None:
    cache = new_cache(**NUM_PAGES, window=WINDOW, caching=caching)
    driver = Driver(cache, seed)
    for _ in range(NUM_STEPS):
        driver.step()
        cache.check()
    assert min(count for name, count in driver.counts.items() if name != "reuse") > 100, driver.counts
    assert (driver.counts["reuse"] > 100) == caching, driver.counts
    for request_id in list(cache.requests):
        cache.drop(request_id)
        cache.check()
    assert {name: cache.num_free(name) for name in NUM_PAGES} == NUM_PAGES
    assert cache.usage == 0 and not cache.num_requests
