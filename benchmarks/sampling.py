"""Time to sample a batch: ours, its reference in numpy, and torch, side by side.

    python benchmarks/sampling.py [--rows 64] [--vocab-size 262144] [--rounds 9]

For each kind of rows and each case the medians in milliseconds of a batch, and the best round of ours. The ways take
turns, so that a busy machine is busy for all. Kinds: `normal` has a standard deviation of 1, so that top-p keeps three
quarters of the tokens; `wide` of 4; `peaked` has a few likely tokens; the others are the worst that we know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import click
import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.sampling.native import log_softmax
from pipelines.sampling.params import SamplingParams
from pipelines.sampling.reference import draw, log_total, top_ids
from pipelines.sampling.sampler import Sampler, sample_rows

Rows = NDArray[np.float32]
NUM_TOP = 5
CASES: dict[str, SamplingParams | None] = {
    "top-k 64, top-p 0.95": SamplingParams(temperature=1.0, top_k=64, top_p=0.95, seed=0),
    "top-p 0.95": SamplingParams(temperature=1.0, top_p=0.95, seed=0),
    "temperature 0.7": SamplingParams(temperature=0.7, seed=0),
    "min-p 0.05": SamplingParams(temperature=1.0, min_p=0.05, seed=0),
    f"{NUM_TOP} log probabilities": None,
}


def kinds_of_rows(num_rows: int, vocab_size: int) -> Iterator[tuple[str, Rows]]:
    """Rows by the name of their kind."""
    normal = np.random.default_rng(0).standard_normal((num_rows, vocab_size), np.float32)
    yield "normal", normal
    yield "wide", normal * 4
    peaked = normal.copy()
    peaked[:, :: vocab_size // 16] += 12
    yield "peaked", peaked
    yield "all equal", np.zeros_like(normal)
    yield "two values", (normal > 0).astype(np.float32)
    yield "mostly masked", np.where(normal > 2, normal, np.float32(-np.inf))
    yield "ascending", np.sort(normal)


def ways(rows: Rows, params: SamplingParams | None) -> dict[str, Callable[[], object]]:
    """The same work in three ways."""
    each = list(rows)
    logits = torch.from_numpy(rows)
    if params is None:
        return {
            "ours": lambda: log_softmax(each, [NUM_TOP] * len(each)),
            "numpy": lambda: [(log_total(row), top_ids(row, NUM_TOP)) for row in each],
            "torch": lambda: torch.log_softmax(logits, -1).topk(NUM_TOP),
        }
    resolved = params.resolved()
    samplers = [Sampler(params) for _ in each]
    return {
        "ours": lambda: sample_rows(each, samplers),
        "numpy": lambda: [draw(row, resolved, 0.5) for row in each],
        "torch": lambda: torch_draw(logits, params),
    }


def torch_draw(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Samples as transformers does; top-p after top-k looks at the top alone."""
    ids = None
    scores = logits / (params.temperature or 1.0)
    if params.top_k:
        scores, ids = scores.topk(params.top_k)
    if params.top_p is not None:
        ordered, order = scores.sort(descending=True)
        probabilities = ordered.softmax(-1)
        is_cut = probabilities.cumsum(-1) - probabilities >= params.top_p
        scores = ordered.masked_fill(is_cut, float("-inf"))
        ids = order if ids is None else ids.gather(-1, order)
    probabilities = scores.softmax(-1)
    if params.min_p is not None:
        probabilities = probabilities * (probabilities >= params.min_p * probabilities.amax(-1, keepdim=True))
    drawn = (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1, keepdim=True)
    return drawn if ids is None else ids.gather(-1, drawn)


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, in turns, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: values[1:] for name, values in times.items()}


@click.command()
@click.option("--rows", default=64, show_default=True)
@click.option("--vocab-size", default=262144, show_default=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--kind", multiple=True, help="Only these kinds of rows.")
def main(rows: int, vocab_size: int, rounds: int, kind: tuple[str, ...]) -> None:
    """Prints a table."""
    print(f"{rows} rows of {vocab_size} logits, ms a batch, medians of {rounds}")
    print(f"{'rows':14} {'case':22} {'ours':>8} {'best':>8} {'numpy':>8} {'torch':>8}")
    for name, logits in kinds_of_rows(rows, vocab_size):
        if kind and name not in kind:
            continue
        for case, params in CASES.items():
            times = measure(ways(logits, params), rounds)
            ours, numpy_ms, torch_ms = (float(np.median(times[way])) for way in ("ours", "numpy", "torch"))
            print(
                f"{name:14} {case:22} {ours:8.1f} {min(times['ours']):8.1f} {numpy_ms:8.0f} {torch_ms:8.0f}", flush=True
            )


if __name__ == "__main__":
    main()
