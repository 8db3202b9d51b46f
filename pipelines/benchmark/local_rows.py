"""The rows that a benchmark computes: requests without consumers, over a cache that keeps what lies before them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from kv_cache import KVCacheManager, KVCacheParams, PageHashes
from pipelines.benchmark.local_settings import LocalTest
from pipelines.context import TextContext
from pipelines.engine.scheduler import StepPlan
from pipelines.engine.step import LaunchedStep
from pipelines.errors import InputError
from pipelines.pipeline_model import PipelineModel


def pages_needed(params: KVCacheParams, tests: Sequence[LocalTest], max_step_tokens: int) -> dict[str, int]:
    """Pages of each group that the tests need.

    Sliding groups get room to keep the window before a test while the test slides on, so that each repetition finds it.
    """
    needed = dict.fromkeys((group.name for group in params.groups), 0)
    for test in tests:
        for group in params.groups:
            pages = group.max_pages(test.max_row_tokens, max_step_tokens)
            kept = 0 if group.window is None else group.num_pages(group.window) + 2
            needed[group.name] = max(needed[group.name], test.batch_size * (pages + kept))
    return needed


class RowRunner:
    """Computes tests on a model, with random tokens and without sampling.

    cache: one with prefix caching. The tokens before a test are computed once: their pages are found again by hashes.
    """

    def __init__(
        self, model: PipelineModel, cache: KVCacheManager, vocab_size: int, max_step_tokens: int, seed: int = 0
    ) -> None:
        self._model, self._cache, self._max_step_tokens = model, cache, max_step_tokens
        self._vocab_size, self._seed = vocab_size, seed

    def run(self, test: LocalTest) -> list[float]:
        """Seconds of each step of one repetition of a test.

        Raises:
            InputError: The cache has too few pages.
        """
        rows = [self._open(row, test) for row in range(test.batch_size)]
        self._model.compile(self._model.required_graphs(rows[0]))
        try:
            self._compute(rows, test.depth)
            if test.kind == "prompt":
                return self._compute(rows, test.max_row_tokens)
            return [self._step(dict.fromkeys(rows, 1)) for _ in range(test.length)]
        finally:
            for row in rows:
                assert row.pages is not None
                self._cache.release(row.pages)

    def _open(self, number: int, test: LocalTest) -> TextContext:
        """Opens a row, with the whole pages of the tokens before the test, if they were computed before."""
        rng = np.random.default_rng([self._seed, number])
        row = TextContext(f"row {number}", rng.integers(0, self._vocab_size, test.max_row_tokens).tolist())
        row.page_hashes = PageHashes(self._cache.params.page_size)
        row.page_hashes.extend(row.tokens[: test.depth])  # what the test itself computes must not be found again
        row.pages = self._cache.open(row.page_hashes.hashes, test.depth + 1)
        return row

    def _compute(self, rows: Sequence[TextContext], end: int) -> list[float]:
        """Computes the tokens of all rows up to position `end`, as many in a step as the engine would.

        Returns:
            The seconds of each step.
        """
        seconds = []
        while counts := self._plan(rows, end):
            seconds.append(self._step(counts))
        return seconds

    def _plan(self, rows: Sequence[TextContext], end: int) -> dict[TextContext, int]:
        """The tokens of the next step, of the first rows that have any left."""
        counts, spare = {}, self._max_step_tokens
        for row in rows:
            if count := min(end - row.num_computed_tokens, spare):
                counts[row] = count
                spare -= count
        return counts

    def _step(self, counts: Mapping[TextContext, int]) -> float:
        """Computes tokens of rows, and waits for the likeliest token after each; the seconds of that."""
        start = time.perf_counter()
        for row, count in counts.items():
            assert row.pages is not None
            row.num_scheduled_tokens = count
            if not self._cache.allocate(row.pages, count):
                raise InputError("the KV cache has too few pages: raise --kv-cache-memory, or lower --batch-size")
        for outputs in LaunchedStep.launch(self._model, self._cache, StepPlan(list(counts))).collect():
            _ = outputs.greedy_token
        seconds = time.perf_counter() - start
        for row, count in counts.items():
            assert row.pages is not None and row.page_hashes is not None
            self._cache.commit(row.pages, count, row.page_hashes.hashes)
        return seconds
