"""Metrics of the engine, which are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kv_cache import KVCacheManager
from pipelines.engine.engine import Engine
from pipelines.serve.service import Service

PREFIX = "vllm:"
"""What the names of all metrics begin with: dashboards and alerts that were made for vLLM read them."""

LABELS = ("model_name", "engine")
"""Labels of all metrics; there is one engine, 0."""

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Buckets of the histogram of the tokens of a step."""


class EngineCollector(Collector):
    """State and totals of a service's engine; nothing while the model is being loaded.

    It runs on the event loop while the engine's thread goes on: it reads whole numbers, lengths and one copy, each of
    which the interpreter takes at once. labels: of all metrics.
    """

    def __init__(self, service: Service, labels: Mapping[str, str]) -> None:
        self._service, self._labels = service, labels

    def collect(self) -> Iterator[Metric]:
        """Reads the engine."""
        if not self._service.is_loaded.is_set() or self._service.error is not None:
            return
        engine = self._service.pipeline.engine
        yield from self._gauges(engine)
        yield from self._counters(engine)
        yield self._step_tokens(dict(engine.stats.steps_by_tokens))
        yield self._cache_config(engine.cache)

    def _gauges(self, engine: Engine) -> Iterator[Metric]:
        num_running = len(engine.scheduler.running)
        # What is neither running nor ended waits: for its prompt to be encoded, or in the engine's queue.
        num_waiting = max(0, self._service.num_admitted - num_running)
        gauges: dict[str, tuple[str, float]] = {
            "num_requests_running": ("Sequences that the steps compute.", num_running),
            "num_requests_waiting": ("Sequences that wait to be encoded or scheduled.", num_waiting),
            "kv_cache_usage_perc": ("Share of the KV cache's pages that sequences hold, 0 to 1.", engine.cache.usage),
        }
        for name, (text, value) in gauges.items():
            family = GaugeMetricFamily(PREFIX + name, text, labels=LABELS)
            family.add_metric(list(self._labels.values()), value)
            yield family

    def _counters(self, engine: Engine) -> Iterator[Metric]:
        scheduler = engine.scheduler
        counters = {
            "num_preemptions": ("Times that a sequence was preempted.", scheduler.num_preemptions),
            "prefix_cache_queries": ("Tokens of prompts looked up in the cache.", scheduler.num_prefix_query_tokens),
            "prefix_cache_hits": ("Tokens of prompts that the cache had.", scheduler.num_prefix_hit_tokens),
        }
        for name, (text, value) in counters.items():
            family = CounterMetricFamily(PREFIX + name, text, labels=LABELS)
            family.add_metric(list(self._labels.values()), value)
            yield family

    def _step_tokens(self, steps_by_tokens: Mapping[int, int]) -> Metric:
        bounds = [float(bound) for bound in STEP_TOKENS] + [float("inf")]
        counts = [0] * len(bounds)
        for num_tokens, num_steps in steps_by_tokens.items():
            counts[next(i for i, bound in enumerate(bounds) if num_tokens <= bound)] += num_steps
        names = [str(bound) for bound in bounds[:-1]] + ["+Inf"]
        total = sum(num_tokens * num_steps for num_tokens, num_steps in steps_by_tokens.items())
        family = HistogramMetricFamily(f"{PREFIX}iteration_tokens_total", "Tokens that a step computed.", labels=LABELS)
        buckets = list(zip(names, map(float, accumulate(counts)), strict=True))
        family.add_metric(list(self._labels.values()), buckets, total)
        return family

    def _cache_config(self, cache: KVCacheManager) -> Metric:
        """A sample for each page group, which says all in its labels, under vLLM's names of them."""
        labels = (*LABELS, "page_group", "block_size", "num_gpu_blocks", "cache_dtype", "enable_prefix_caching")
        family = GaugeMetricFamily(f"{PREFIX}cache_config_info", "Layout of the KV cache.", labels=labels)
        for group in cache.params.groups:
            layout = (group.name, group.page_size, cache.num_pages(group.name), group.dtype.name)
            values = [*self._labels.values(), *map(str, layout), str(cache.enable_prefix_caching)]
            family.add_metric(values, 1)
        return family
