"""The same work on OpenVINO GenAI, llama.cpp, transformers and this package, by turns, on random published shapes.

    python benchmarks/compare.py --openvino-python ov/bin/python --export-python export/bin/python \\
        --llama-python llama/bin/python --plot compare.svg

Each peer has an environment of its own, all from PyPI:

    python -m venv ov && ov/bin/pip install openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0
    python -m venv llama && llama/bin/pip install llama-cpp-python==0.3.36
    python -m venv export && export/bin/pip install torch==2.13.0 \\
        && export/bin/pip install 'transformers==4.57.*' openvino==2026.4.1 nncf==3.4.0 setuptools \\
        && export/bin/pip install --no-deps optimum-intel==2.2.0 optimum==2.3.0

transformers runs under this interpreter, which has graph-pipelines[test]. A system that can't run is left out, and the
reason printed. The models, about 30 GB, are made in --work when they are first needed.

The work: a prompt, then decoding after it; decoding after a long prompt (--depth), which all systems keep between the
rounds; and decoding a batch. The prompts are the same random token ids for all. In each round the systems take turns;
one round before the others does not count. Every system uses all cores that this process may use (taskset), the
likeliest token, and its own defaults, which are printed: OpenVINO has its cache in 8 bits and, outside the row float32,
computes in bfloat16 where the processor does; llama.cpp has its cache in float16. Neither is exact, ours in float32 and
bfloat16 is.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
from compare_models import ROWS, SYSTEMS, Models, NotAvailable, exporter_of
from compare_process import Worker, each
from compare_report import Measurement, plot, table
from generate import CONFIGS, processor

from pipelines.benchmark.plot import check_can_plot
from pipelines.errors import InputError

SHAPES = ("google__gemma-3-1b-it", "Qwen__Qwen3-0.6B")
Workers = dict[str, Worker]
Samples = dict[str, list[float]]


@contextmanager
def started(
    models: Models, row: str, pythons: Mapping[str, Path | None], max_length: int, report: Callable[[str], None]
) -> Iterator[Workers]:
    """The systems that can run a row, loaded; the others are reported with the reason."""
    workers: dict[str, Worker] = {}
    try:
        for system, python in pythons.items():
            try:
                if python is None:
                    raise NotAvailable("no interpreter was given for it")
                workers[system] = Worker(python, system, *models.model_of(system, ROWS[row]), max_length)
                report(f"{row}, {system}: {json.dumps(workers[system].settings)}")
            except NotAvailable as reason:
                report(f"{row}, {system} is left out: {reason}")
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def by_turns(workers: Workers, num_rounds: int, measure: Callable[[Worker, int], tuple[float, ...]]) -> list[Samples]:
    """The figures of each round but the first, which does not count: by system, a list for each figure."""
    rounds = [each(workers, measure, number) for number in range(num_rounds + 1)]
    num_figures = len(next(iter(rounds[-1].values()), ()))
    return [{name: [turn[name][figure] for turn in rounds[1:]] for name in workers} for figure in range(num_figures)]


def prompts(depth: int, num_rows: int, seed: int) -> list[list[int]]:
    """Random token ids, the same for all systems."""
    return np.random.default_rng(seed).integers(10, 1000, (num_rows, depth)).tolist()


def measure_prompt(workers: Workers, length: int, num_new: int, num_rounds: int) -> dict[str, Samples]:
    """Prompt processing, and decoding after it, each round with a prompt of its own."""

    def turn(worker: Worker, number: int) -> tuple[float, float]:
        figures = worker.open(prompts(length, 1, number)), worker.decode(1, num_new)
        worker.close_rows()
        return figures

    return dict(
        zip((f"prompt of {length:,}", f"decode after {length:,}"), by_turns(workers, num_rounds, turn), strict=False)
    )


def measure_decode(workers: Workers, depth: int, num_rows: int, num_new: int, num_rounds: int) -> dict[str, Samples]:
    """Decoding of rows whose prompts are computed once: each round goes on where the last one ended."""
    each(workers, lambda worker: worker.open(prompts(depth, num_rows, depth)))
    found = by_turns(workers, num_rounds, lambda worker, number: (worker.decode(num_rows, num_new),))
    each(workers, lambda worker: worker.close_rows())
    return {
        f"decode {num_rows} after {depth:,}" if num_rows > 1 else f"decode after {depth:,}": samples
        for samples in found
    }


def figures(workers: Workers, work: Mapping[str, int]) -> dict[str, Samples]:
    """All measurements of a row."""
    length, new, rounds = work["prompt_length"], work["new_tokens"], work["rounds"]
    found = measure_prompt(workers, length, new, rounds)
    if work["depth"]:
        found |= measure_decode(workers, work["depth"], 1, new, rounds)
    if work["batch_size"]:
        found |= measure_decode(workers, length, work["batch_size"], new, rounds)
    return found


@click.command()
@click.option("--shape", "shapes", type=click.Choice(sorted(p.name for p in CONFIGS.iterdir())), multiple=True)
@click.option("--row", "rows", type=click.Choice(list(ROWS)), multiple=True, help="[default: all]")
@click.option("--openvino-python", type=click.Path(exists=True, path_type=Path), help="With openvino-genai.")
@click.option("--export-python", type=click.Path(exists=True, path_type=Path), help="With optimum-intel and nncf.")
@click.option("--llama-python", type=click.Path(exists=True, path_type=Path), help="With llama-cpp-python.")
@click.option("--system", "names", type=click.Choice(SYSTEMS), multiple=True, help="[default: all]")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/compare"), show_default=True)
@click.option("--prompt-length", type=int, default=512, show_default=True)
@click.option("--depth", type=int, default=8192, show_default=True, help="0: nothing at a depth.")
@click.option("--batch-size", type=click.IntRange(0, 8), default=8, show_default=True, help="0: no batch.")
@click.option("--new-tokens", type=click.IntRange(1, 32), default=16, show_default=True, help="Of a round.")
@click.option("--rounds", type=click.IntRange(1, 20), default=5, show_default=True)
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw into a .png or .svg file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of the table.")
def main(
    shapes: tuple[str, ...],
    rows: tuple[str, ...],
    openvino_python: Path | None,
    export_python: Path | None,
    llama_python: Path | None,
    names: tuple[str, ...],
    work: Path,
    plot_file: Path | None,
    as_json: bool,
    **numbers: int,
) -> None:
    """Measure this package beside its peers."""
    if plot_file is not None:
        try:
            check_can_plot(plot_file)
        except InputError as error:
            raise click.ClickException(str(error)) from error
    ours = Path(sys.executable)
    interpreters = dict(zip(SYSTEMS, (ours, openvino_python, llama_python, ours), strict=True))
    pythons = {name: interpreters[name] for name in SYSTEMS if name in (names or SYSTEMS)}
    notes: list[str] = []
    measurements = []

    def report(text: str) -> None:
        notes.append(text)
        click.echo(text, err=True)

    max_length = max(numbers["prompt_length"], numbers["depth"]) + (numbers["rounds"] + 2) * numbers["new_tokens"] + 8
    exporter = exporter_of(export_python)
    for shape in shapes or SHAPES:
        models = Models.of_shape(work, shape, exporter)
        for row in rows or ROWS:
            with started(models, row, pythons, max_length, report) as workers:
                found = figures(workers, numbers)
            measurements += [Measurement(shape, row, name, samples) for name, samples in found.items()]
    used = [system for system in SYSTEMS if any(system in each.samples for each in measurements)]
    title = [f"{platform.machine()}, {processor()}", shlex.join(["python", *sys.argv])]
    if as_json:
        lines = [each.as_dict() for each in measurements]
        click.echo(json.dumps({"title": title, "settings": numbers, "notes": notes, "measurements": lines}))
    else:
        click.echo("\n".join((*title, "", table(measurements, used))))
    if plot_file is not None:
        plot(measurements, used, plot_file)


if __name__ == "__main__":
    main()
