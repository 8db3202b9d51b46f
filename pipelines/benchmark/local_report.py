"""The numbers of a local benchmark: speeds with their spread, and their share of what the processor can do."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pipelines.benchmark.local_settings import LocalSettings, LocalTest
from pipelines.benchmark.machine import Machine

_COLUMNS = ("test", "depth", "batch", "tokens/s", "min to max", "ms/step", "first token, ms", "GB/s", "GFLOP/s")
Line = Sequence[str]


@dataclass(frozen=True)
class LocalResult:
    """One test that was measured.

    repetitions: the seconds of each step, of each repetition. bytes_read: of one repetition of generation.
    num_operations: of one repetition of a prompt.
    """

    test: LocalTest
    repetitions: Sequence[Sequence[float]]
    bytes_read: float | None = None
    num_operations: float | None = None

    @property
    def seconds(self) -> list[float]:
        """Seconds of each repetition."""
        return [sum(steps) for steps in self.repetitions]

    @property
    def tokens_per_s(self) -> list[float]:
        """Speed of each repetition, of all rows together."""
        return [self.test.num_tokens / seconds for seconds in self.seconds]

    @property
    def step_s(self) -> float | None:
        """Median of the steps of generation; a prompt's steps differ in length."""
        return statistics.median(chain(*self.repetitions)) if self.test.kind == "generate" else None

    @property
    def time_to_first_token_s(self) -> float | None:
        """Median time until the last row of a batch of prompts has its first token."""
        return statistics.median(self.seconds) if self.test.kind == "prompt" else None

    @property
    def read_bytes_per_s(self) -> float | None:
        """Weights and cache that generation read, in the median repetition."""
        return None if self.bytes_read is None else self.bytes_read / statistics.median(self.seconds)

    @property
    def operations_per_s(self) -> float | None:
        """Operations of prompt processing, in the median repetition."""
        return None if self.num_operations is None else self.num_operations / statistics.median(self.seconds)


@dataclass(frozen=True)
class LocalReport:
    """A run. model, versions: as JSON has them. notes: what a reader of the numbers has to know.

    has_float32_products: whether the machine's float32 arithmetic is what products can be compared with.
    """

    settings: LocalSettings
    machine: Machine
    model: dict[str, Any]
    versions: dict[str, str]
    results: Sequence[LocalResult]
    has_float32_products: bool = True

    def bandwidth_share(self, result: LocalResult) -> float | None:
        """The share of the measured memory bandwidth that generation used."""
        return _ratio(result.read_bytes_per_s, self.machine.read_bytes_per_s)

    def arithmetic_share(self, result: LocalResult) -> float | None:
        """The share of the measured float32 arithmetic that a prompt used; None where products are in another type."""
        return _ratio(result.operations_per_s, self.machine.float32_flops_per_s) if self.has_float32_products else None

    def lines(self) -> list[Line]:
        """The table: names of the columns, then a line for each test. Columns that nothing fills are left out."""
        rows = [self._line(result) for result in self.results]
        used = [number for number in range(len(_COLUMNS)) if any(row[number] for row in rows)]
        return [[row[number] for number in used] for row in (_COLUMNS, *rows)]

    def title(self) -> list[str]:
        """Model, processor and versions, a line each."""
        machine, model = self.machine, self.model
        cores = f"{machine.num_cores} cores of {machine.processor}"
        if machine.read_bytes_per_s and machine.float32_flops_per_s:
            cores += f", which read {machine.read_bytes_per_s / 1e9:.1f} GB/s"
            cores += f" and compute {machine.float32_flops_per_s / 1e9:.0f} GFLOP/s in float32"
        sizes = f"{model['num_values'] / 1e9:.2f}G values in {model['bytes'] / 1e9:.2f} GB"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [f"{model['name']} in {model['encoding']}, {sizes}, on {model['devices']}", cores, versions]

    def as_dict(self) -> dict[str, Any]:
        """The run as JSON has it, with every sample."""
        return {
            "version": self.versions["graph-pipelines"],
            "versions": self.versions,
            "machine": dataclasses.asdict(self.machine),
            "model": self.model,
            "settings": dataclasses.asdict(self.settings),
            "results": [self._entry(result) for result in self.results],
        }

    def _line(self, result: LocalResult) -> Line:
        test, speeds = result.test, result.tokens_per_s
        read, share = result.read_bytes_per_s, self.bandwidth_share(result)
        operations, arithmetic = result.operations_per_s, self.arithmetic_share(result)
        return (
            test.name,
            f"{test.depth:,}",
            f"{test.batch_size}",
            f"{statistics.median(speeds):,.1f}",
            f"{min(speeds):,.1f} to {max(speeds):,.1f}",
            _cell(result.step_s, lambda value: f"{value * 1e3:,.1f}"),
            _cell(result.time_to_first_token_s, lambda value: f"{value * 1e3:,.0f}"),
            _cell(read, lambda value: f"{value / 1e9:.1f}") + _cell(share, lambda value: f" ({value:.0%})"),
            _cell(operations, lambda value: f"{value / 1e9:.0f}") + _cell(arithmetic, lambda value: f" ({value:.0%})"),
        )

    def _entry(self, result: LocalResult) -> dict[str, Any]:
        speeds = result.tokens_per_s
        return {
            **dataclasses.asdict(result.test),
            "name": result.test.name,
            "tokens_per_s": {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)},
            "step_ms": _times(result.step_s, 1e3),
            "time_to_first_token_ms": _times(result.time_to_first_token_s, 1e3),
            "bytes_read_per_s": result.read_bytes_per_s,
            "bandwidth_share": self.bandwidth_share(result),
            "operations_per_s": result.operations_per_s,
            "arithmetic_share": self.arithmetic_share(result),
            "samples_s": [list(steps) for steps in result.repetitions],
        }


def as_markdown(lines: Sequence[Line]) -> str:
    """The table in Markdown."""
    head, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _ratio(value: float | None, limit: float | None) -> float | None:
    return value / limit if value is not None and limit else None


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _cell(value: float | None, text: Callable[[float], str]) -> str:
    return "" if value is None else text(value)
