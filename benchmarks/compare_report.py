"""The numbers of compare.py: medians, the ratios to the best peer, a table and a small drawing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

OURS = "pipelines"


@dataclass(frozen=True)
class Measurement:
    """One line of the table: the tokens a second of each system, one a round, in the order of the rounds."""

    shape: str
    row: str
    name: str
    samples: dict[str, list[float]]

    @property
    def medians(self) -> dict[str, float]:
        """The median of each system."""
        return {system: statistics.median(samples) for system, samples in self.samples.items()}

    @property
    def best_peer(self) -> str | None:
        """The peer with the highest median; None: there is no peer."""
        peers = {system: speed for system, speed in self.medians.items() if system != OURS}
        return max(peers, key=peers.__getitem__) if peers else None

    @property
    def ratio(self) -> float | None:
        """The median over the rounds of ours to the best peer's; None where one of them is missing."""
        if self.best_peer is None or OURS not in self.samples:
            return None
        pairs = zip(self.samples[OURS], self.samples[self.best_peer], strict=True)
        return statistics.median(ours / peer for ours, peer in pairs)

    def as_dict(self) -> dict[str, Any]:
        """The line as JSON has it."""
        return {**asdict(self), "medians": self.medians, "best_peer": self.best_peer, "ratio": self.ratio}


def table(measurements: Sequence[Measurement], systems: Sequence[str]) -> str:
    """A table in Markdown, for each shape."""
    lines = []
    for shape in dict.fromkeys(each.shape for each in measurements):
        lines += ["", f"{shape}, tokens/s", "", f"| | | {' | '.join(systems)} | {OURS} to the best peer |"]
        lines += ["|" + " --- |" * (len(systems) + 3)]
        lines += [_line(each, systems) for each in measurements if each.shape == shape]
    return "\n".join(lines[1:])


def _line(measurement: Measurement, systems: Sequence[str]) -> str:
    medians, ratio = measurement.medians, measurement.ratio
    cells = [f"{medians[system]:,.1f}" if system in medians else "" for system in systems]
    found = "" if ratio is None else f"{ratio:.2f}x {measurement.best_peer}"
    return f"| {' | '.join((measurement.row, measurement.name, *cells, found))} |"


def plot(measurements: Sequence[Measurement], systems: Sequence[str], path: Path) -> None:
    """Draws bars: a panel for each shape and kind of measurement, a group of bars for each row."""
    from matplotlib.figure import Figure

    shapes, names = _unique(each.shape for each in measurements), _unique(each.name for each in measurements)
    figure = Figure(figsize=(3.2 * len(names), 0.6 + 2.4 * len(shapes)), layout="constrained")
    panels = figure.subplots(len(shapes), len(names), squeeze=False)
    for line, shape in zip(panels, shapes, strict=True):
        for axes, name in zip(line, names, strict=True):
            _draw(axes, [m for m in measurements if (m.shape, m.name) == (shape, name)], systems)
            axes.set_title(f"{shape.partition('__')[2]}: {name}", fontsize=7)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(systems), fontsize=7, frameon=False)
    figure.savefig(path)


def _draw(axes: Any, measurements: Sequence[Measurement], systems: Sequence[str]) -> None:
    places, width = np.arange(len(measurements)), 0.8 / len(systems)
    for number, system in enumerate(systems):
        speeds = [each.medians.get(system, 0.0) for each in measurements]
        axes.bar(places + number * width, speeds, width, label=system)
    axes.set_xticks(places + 0.4 - width / 2, [each.row for each in measurements], fontsize=6, rotation=20)
    axes.tick_params(axis="y", labelsize=6)
    axes.set_ylabel("tokens/s", fontsize=6)


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
