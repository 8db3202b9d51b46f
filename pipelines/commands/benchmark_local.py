"""`pipelines benchmark` without --url: a model in this process, with a table or JSON on stdout, all else on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from pipelines.benchmark.local_settings import LocalSettings
from pipelines.commands.progress import console_stages
from pipelines.config import PipelineConfig
from pipelines.errors import InputError

if TYPE_CHECKING:
    from pipelines.benchmark.local_report import LocalReport


def benchmark_model_to_console(
    config: PipelineConfig, seed: int | None, as_json: bool, as_markdown: bool, **settings: Any
) -> None:
    """Measures a model and prints the result.

    Args:
        config: The run, less what follows from the settings.
        seed: Of the tokens; None: 0.
        as_json: Whether to print one JSON object in place of the table.
        as_markdown: Whether to print the table in Markdown.
        settings: The other fields of LocalSettings; empty ones have their defaults.

    Raises:
        InputError: A setting is out of range, or the model can't be loaded.
    """
    if as_json and as_markdown:
        raise InputError("--json and --markdown are two forms of the output: leave out one")
    checked = LocalSettings(seed=seed or 0, **{name: value for name, value in settings.items() if value != ()})
    from pipelines.benchmark.local import LocalBenchmark
    from pipelines.without_torch import import_transformers_without_torch

    import_transformers_without_torch(config)
    stages = console_stages(sys.stderr)
    report = LocalBenchmark.prepare(checked, config, stages).run(stages)
    if as_json:
        print(json.dumps(report.as_dict()))
    elif as_markdown:
        _print_markdown(report)
    else:
        _print_table(report)


def _print_markdown(report: LocalReport) -> None:
    from pipelines.benchmark.local_report import as_markdown

    print("\n".join((*report.title(), "", as_markdown(report.lines()))))


def _print_table(report: LocalReport) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    head, *lines = report.lines()
    table = Table(box=box.SIMPLE)
    for name in head:
        table.add_column(name, justify="left" if name == "test" else "right")
    for line in lines:
        table.add_row(*line)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    for text in report.title():
        console.print(text)
    console.print(table)
