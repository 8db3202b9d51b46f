"""A benchmark of a model in this process: load it, compute each test a few times."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from kv_cache import KVCacheManager
from pipelines.benchmark.local_report import LocalReport, LocalResult
from pipelines.benchmark.local_rows import RowRunner, pages_needed
from pipelines.benchmark.local_settings import LocalSettings, LocalTest
from pipelines.benchmark.local_work import ModelWork
from pipelines.benchmark.machine import Machine
from pipelines.config import PipelineConfig
from pipelines.errors import InputError
from pipelines.load import PreparedPipeline, prepare_pipeline
from pipelines.pipeline_model import PipelineModel
from pipelines.stages import NullStages, Stages

_WARM_UP_LENGTH = {"prompt": 512, "generate": 4}


@dataclass
class LocalBenchmark:
    """One run, in the order of its methods."""

    settings: LocalSettings
    prepared: PreparedPipeline
    machine: Machine

    @classmethod
    def prepare(cls, settings: LocalSettings, config: PipelineConfig, stages: Stages | None = None) -> LocalBenchmark:
        """Measures the processor and opens the checkpoint.

        Args:
            settings: What to measure.
            config: The run; its lengths and its batch size follow from the settings.
            stages: Receives reports about the stages.

        Raises:
            InputError: As `prepare_pipeline`; or the cache has no room for the rows of a test.
        """
        stages = stages or NullStages()
        config = dataclasses.replace(
            config,
            max_length=settings.max_length,
            max_batch_size=settings.max_batch_size,
            enable_prefix_caching=True,
        )
        with stages.stage("processor"):
            machine = Machine.measure() if config.device_kind == "cpu" else Machine.describe()
        return cls(settings, _with_pages(prepare_pipeline(config, stages), settings), machine)

    def run(self, stages: Stages | None = None) -> LocalReport:
        """Loads the model and measures all tests.

        Raises:
            InputError: As `PreparedPipeline.load`.
        """
        with self.prepared.load() as pipe:
            results = list(self.measure(pipe.model, pipe.cache, stages or NullStages()))
        config = self.prepared.config
        return LocalReport(
            settings=self.settings,
            machine=self.machine,
            model=self._describe_model(),
            versions={name: version(name) for name in ("graph-pipelines", "max")},
            results=results,
            has_float32_products=config.device_kind == "cpu" and not config.rounds_activations,
        )

    def measure(self, model: PipelineModel, cache: KVCacheManager, stages: Stages) -> Iterator[LocalResult]:
        """Yields the results of the tests."""
        vocab_size, work = self.prepared.prompts.vocab_size, ModelWork.of(self.prepared)
        runner = RowRunner(model, cache, vocab_size, self.prepared.config.max_step_tokens, self.settings.seed)
        for test in self.settings.tests():
            place = f"at depth {test.depth:,}" + (f", {test.batch_size} rows" if test.batch_size > 1 else "")
            with stages.stage(test.name, place):
                runner.run(warm_up(test))
                repetitions = [runner.run(test) for _ in range(self.settings.repetitions)]
            is_prompt = test.kind == "prompt"
            yield LocalResult(
                test,
                repetitions,
                bytes_read=None if is_prompt else work.bytes_read(test),
                num_operations=work.num_operations(test) if is_prompt else None,
            )

    def _describe_model(self) -> dict[str, Any]:
        config, work = self.prepared.config, ModelWork.of(self.prepared)
        weights = work.shared + work.head + work.experts
        return {
            "name": self.prepared.checkpoint.name,
            "architecture": self.prepared.architecture.name,
            "encoding": config.quantization_encoding,
            "head_encoding": config.head_encoding,
            "activation_encoding": config.activation_encoding,
            "devices": config.devices,
            "num_values": weights.num_values,
            "bytes": weights.bytes,
            "max_step_tokens": config.max_step_tokens,
        }


def warm_up(test: LocalTest) -> LocalTest:
    """The shorter test that comes first and does not count; it computes what lies before the test."""
    return dataclasses.replace(test, length=min(test.length, _WARM_UP_LENGTH[test.kind]))


def _with_pages(prepared: PreparedPipeline, settings: LocalSettings) -> PreparedPipeline:
    """Gives the planned cache the pages that the tests need.

    Raises:
        InputError: The plan has memory for fewer.
    """
    plan, params = prepared.plan, prepared.kv_params
    needed = pages_needed(params, list(settings.tests()), prepared.config.max_step_tokens)
    short = [g.name for g in params.groups if g.window is None and plan.num_pages[g.name] < needed[g.name]]
    if short:
        raise InputError(
            f"the KV cache has no room for {settings.max_batch_size} rows of {settings.max_length:,} tokens: lower "
            "--batch-size or --depth, or raise --kv-cache-memory"
        )
    return dataclasses.replace(prepared, plan=dataclasses.replace(plan, num_pages=needed))
