"""Drawings of a benchmark run, with matplotlib."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.benchmark.outcome import Outcome
from pipelines.errors import InputError

SUFFIXES = (".png", ".svg")
_MAX_BINS = 100


def check_can_plot(path: Path) -> None:
    """Checks, before a load begins, that its drawing will be possible.

    Raises:
        InputError: matplotlib is not installed, the name is not that of a drawing, or its folder does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--plot is '{path}': give a name that ends with {' or '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib: pip install 'graph-pipelines[benchmark]'")
    if not path.parent.is_dir():
        raise InputError(f"can't write --plot {path}: there is no folder {path.parent}")


def plot(outcomes: Sequence[Outcome], duration_s: float, title: str, path: Path) -> None:
    """Draws the distributions of the latencies, and the throughput over time, into a file.

    Raises:
        OSError: The file can't be written.
    """
    from matplotlib.figure import Figure  # without pyplot, which keeps every figure and chooses a window system

    done = [outcome for outcome in outcomes if outcome.error is None]
    figure = Figure(figsize=(10, 7), layout="constrained")
    (ttft, itl), (e2e, throughput) = figure.subplots(2, 2)
    _draw_cdf(ttft, "time to first token", [outcome.ttft_s for outcome in done])
    _draw_cdf(itl, "inter-token latency", [gap for outcome in done for gap in outcome.itl_s])
    _draw_cdf(e2e, "end-to-end latency", [outcome.e2e_s for outcome in done])
    edges_s, tokens_per_s = throughput_over_time(done, duration_s)
    throughput.stairs(tokens_per_s, edges_s, fill=True)
    throughput.set(title="throughput", xlabel="seconds since the load began", ylabel="output tokens/s", ylim=(0, None))
    figure.suptitle(title.replace("$", r"\$"), wrap=True)
    figure.savefig(path)


def throughput_over_time(outcomes: Sequence[Outcome], duration_s: float) -> tuple[list[float], list[float]]:
    """Output tokens a second, in up to 100 equal intervals: their edges in seconds, one more than values, and values.

    A request's tokens are spread evenly over its chunks.
    """
    num_bins = max(1, min(_MAX_BINS, math.ceil(duration_s)))
    times_s = [time_s for outcome in outcomes for time_s in outcome.chunk_times_s]
    weights = [
        outcome.num_output_tokens / len(outcome.chunk_times_s) for outcome in outcomes for _ in outcome.chunk_times_s
    ]
    tokens, edges_s = np.histogram(times_s, bins=num_bins, range=(0, duration_s or 1), weights=weights)
    return edges_s.tolist(), (tokens / np.diff(edges_s)).tolist()


def _draw_cdf(axes: Any, title: str, seconds: Sequence[float]) -> None:
    if seconds:
        axes.ecdf(np.asarray(seconds) * 1e3)
    axes.set(title=title, xlabel="ms", ylabel="share of values", xlim=(0, None), ylim=(0, 1))
    axes.grid(alpha=0.3)
