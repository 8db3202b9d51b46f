"""A benchmark run: find the model, make the prompts, warm up, measure."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from pipelines.benchmark.client import ServerClient
from pipelines.benchmark.load_generator import Load, arrival_times
from pipelines.benchmark.outcome import Outcome, RequestPlan
from pipelines.benchmark.prompts import UNCALIBRATED, Prompt, calibrate, random_prompts, read_prompts, take
from pipelines.benchmark.report import ErrorCount, Report, count_errors
from pipelines.benchmark.settings import DEFAULT_NUM_REQUESTS, BenchmarkSettings


@dataclass(frozen=True)
class BenchmarkResult:
    """The measurements of a run. notes: sentences that a reader of the numbers should know."""

    settings: BenchmarkSettings
    report: Report
    outcomes: list[Outcome]
    calibration: str
    warmup_errors: tuple[ErrorCount, ...]
    notes: tuple[str, ...]
    was_stopped: bool

    @property
    def has_failures(self) -> bool:
        """Whether a request has failed, in the warm-up or later."""
        return self.report.num_failed > 0 or bool(self.warmup_errors)

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON has it: the settings, less the key, and the numbers."""
        return {
            "version": version("graph-pipelines"),
            "settings": _public_settings(self.settings),
            "calibration": self.calibration,
            **self.report.as_dict(),
            "warmup_errors": [dataclasses.asdict(error) for error in self.warmup_errors],
            "notes": list(self.notes),
        }


@dataclass
class Benchmark:
    """One run against one server, in the order of its methods.

    settings: those of the run; `prepare` fills in what they leave to the server, to the file or to chance.
    """

    settings: BenchmarkSettings
    calibration: str = "none"
    plans: list[RequestPlan] = field(default_factory=list)
    warmup_errors: tuple[ErrorCount, ...] = ()

    def __post_init__(self) -> None:
        self._file_prompts = None if self.settings.prompts_file is None else read_prompts(self.settings.prompts_file)
        default = DEFAULT_NUM_REQUESTS if self._file_prompts is None else len(self._file_prompts)
        self.settings = dataclasses.replace(
            self.settings,
            num_requests=self.settings.num_requests or default,
            seed=random.randrange(2**32) if self.settings.seed is None else self.settings.seed,
        )
        self._client = ServerClient(self.settings)

    @property
    def num_requests(self) -> int:
        """Requests that are measured."""
        assert self.settings.num_requests is not None
        return self.settings.num_requests

    async def prepare(self) -> None:
        """Finds the model and makes the requests: first those of the warm-up, then the others.

        Raises:
            InputError: The server can't be reached or has no model, or the prompts can't be made.
        """
        await self._client.find_model()
        self.settings = dataclasses.replace(self.settings, model=self._client.model)
        assert self.settings.seed is not None
        prompts = await self._prompts(self.settings.num_warmup, self.num_requests)
        times: list[float | None] = [None] * self.settings.num_warmup
        times += arrival_times(self.num_requests, self.settings.request_rate, self.settings.seed)
        lengths = random.Random(f"lengths {self.settings.seed}")
        self.plans = [
            RequestPlan(
                prompt.text,
                prompt.max_tokens or lengths.randint(*self.settings.output_tokens),
                prompt.num_tokens,
                scheduled_s,
            )
            for prompt, scheduled_s in zip(prompts, times, strict=True)
        ]

    async def warm_up(self) -> None:
        """Sends the requests of the warm-up, whose times do not count."""
        load = Load(self._client.send, self.plans[: self.settings.num_warmup], self.settings.concurrency)
        await load.run(asyncio.Event())
        self.warmup_errors = count_errors(load.outcomes)

    async def measure(self, stop: asyncio.Event, on_end: Callable[[], None] = lambda: None) -> BenchmarkResult:
        """Sends the requests until they have ended, or until `stop`.

        on_end: called at the end of each.
        """
        load = Load(self._client.send, self.plans[self.settings.num_warmup :], self.settings.concurrency)
        await load.run(stop, on_end)
        report = Report.of(load.outcomes, load.duration_s, load.num_unfinished)
        return BenchmarkResult(
            settings=self.settings,
            report=report,
            outcomes=load.outcomes,
            calibration=self.calibration,
            warmup_errors=self.warmup_errors,
            notes=tuple(self._notes(report)),
            was_stopped=stop.is_set(),
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _prompts(self, num_warmup: int, num_requests: int) -> list[Prompt]:
        if self._file_prompts is None:
            return await self._random_prompts(num_warmup + num_requests)
        # A prefix cache must not know a prompt from the warm-up.
        warmup = [Prompt(f"{number}: {each.text}") for number, each in enumerate(take(self._file_prompts, num_warmup))]
        return warmup + take(self._file_prompts, num_requests)

    async def _random_prompts(self, num_prompts: int) -> list[Prompt]:
        for name, count in (("tokenize", self._client.count_by_tokenize), ("usage", self._client.count_by_usage)):
            calibration = await calibrate(count)
            if calibration is not None:
                self.calibration = name
                return random_prompts(self.settings, calibration, num_prompts)
        return random_prompts(self.settings, UNCALIBRATED, num_prompts)

    def _notes(self, report: Report) -> list[str]:
        notes = []
        if self.calibration == "none" and self._file_prompts is None:
            notes.append("the server counts no tokens for us: prompts have a word for each token that was asked for")
        if not report.has_usage:
            prompts = "prompts count as calibrated" if self._file_prompts is None else "the file's prompts as none"
            notes.append(f"the server streams no usage: a chunk counts as one output token, {prompts}")
        if self._file_prompts and len(self._file_prompts) < self.num_requests:
            notes.append(f"the {len(self._file_prompts)} prompts of the file repeat: a prefix cache may know them")
        if report.num_unfinished:
            notes.append(f"stopped: {report.num_unfinished} requests had not ended, and do not count")
        notes += [f"{error.count} of the warm-up failed, {error.kind}: {error.example}" for error in self.warmup_errors]
        return notes


def _public_settings(settings: BenchmarkSettings) -> dict[str, Any]:
    shown = dataclasses.asdict(settings)
    del shown["api_key"], shown["plot_file"]
    return shown | {
        "request_rate": None if math.isinf(settings.request_rate) else settings.request_rate,  # JSON has no infinity
        "prompts_file": None if settings.prompts_file is None else str(settings.prompts_file),
        "extra_body": dict(settings.extra_body),
    }
