"""The output of `pipelines benchmark`: a table or JSON on stdout, everything else on stderr."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from pipelines.benchmark.plot import check_can_plot, plot
from pipelines.benchmark.report import PERCENTILES, Distribution, Report
from pipelines.benchmark.run import Benchmark, BenchmarkResult
from pipelines.benchmark.settings import BenchmarkSettings, TokenRange
from pipelines.commands.progress import console_stages

if TYPE_CHECKING:
    from rich.table import Table

INTERRUPTED = 130
_LATENCIES = {
    "ttft_ms": "time to first token",
    "itl_ms": "inter-token latency",
    "tpot_ms": "time per output token",
    "e2e_ms": "end-to-end latency",
    "send_delay_ms": "send delay",
}


def benchmark_to_console(prompt_tokens: str, output_tokens: str, as_json: bool, **settings: Any) -> int:
    """Measures a server and prints the result.

    Args:
        prompt_tokens: A number, or LOW:HIGH.
        output_tokens: A number, or LOW:HIGH.
        as_json: Whether to print one JSON object in place of the table.
        settings: The other fields of BenchmarkSettings.

    Returns:
        The exit code: 0; 1 if a request has failed, or the drawing can't be written; 130 if Ctrl-C has ended the load.

    Raises:
        InputError: A setting is out of range, or the server can't be reached or has no model.
    """
    checked = BenchmarkSettings(
        prompt_tokens=TokenRange.parse("--prompt-tokens", prompt_tokens),
        output_tokens=TokenRange.parse("--output-tokens", output_tokens),
        **settings,
    )
    if checked.plot_file is not None:
        check_can_plot(checked.plot_file)
    result = asyncio.run(_run(Benchmark(checked)))
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        _print_table(result)
    sys.stdout.flush()
    is_drawn = checked.plot_file is None or _plot(result)
    if result.was_stopped:
        return INTERRUPTED
    return 1 if result.has_failures or not is_drawn else 0


async def _run(benchmark: Benchmark) -> BenchmarkResult:
    stages = console_stages(sys.stderr)
    try:
        with stages.stage("prompts"):
            await benchmark.prepare()
        if benchmark.settings.num_warmup:
            with stages.stage("warm-up"):
                await benchmark.warm_up()
        stop = asyncio.Event()
        with _stopping_on_interrupt(stop), _progress(benchmark.num_requests, sys.stderr) as on_end:
            return await benchmark.measure(stop, on_end)
    finally:
        await benchmark.close()


@contextmanager
def _stopping_on_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """Sets `stop` on Ctrl-C, so that what was measured is printed; a second Ctrl-C ends the program at once."""
    loop = asyncio.get_running_loop()

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        loop.call_soon_threadsafe(stop.set)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(num_requests: int, stream: TextIO | None) -> Iterator[Callable[[], None]]:
    """Shows how many requests have ended, on a terminal; yields the function to call at each end."""
    if stream is None or not stream.isatty():
        with console_stages(stream).stage(f"{num_requests} requests"):
            yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=stream), transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("", total=num_requests)
        yield lambda: progress.advance(task)


def _plot(result: BenchmarkResult) -> bool:
    """Draws the result; returns whether that was possible."""
    path = result.settings.plot_file
    assert path is not None
    try:
        plot(result.outcomes, result.report.duration_s, _title(result), path)
    except OSError as error:
        print(f"error: can't write --plot {path}: {error.strerror}", file=sys.stderr)
        return False
    return True


def _title(result: BenchmarkResult) -> str:
    settings = result.settings
    limits = [] if settings.concurrency is None else [f"at most {settings.concurrency} in flight"]
    if settings.request_rate < float("inf"):
        limits.append(f"{settings.request_rate:g} arrivals/s")
    return f"{settings.model} at {settings.root_url}, {settings.endpoint}, {', '.join(limits) or 'all at once'}"


def _print_table(result: BenchmarkResult) -> None:
    from rich.console import Console

    report = result.report
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    console.print(_title(result))
    console.print(_latency_table(report))
    console.print(_total_table(report))
    if report.errors:
        console.print(_error_table(report))
    for note in (*result.notes, f"seed {result.settings.seed}"):
        console.print(note)


def _latency_table(report: Report) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("ms")
    for name in ("mean", *(f"p{percentile}" for percentile in PERCENTILES)):
        table.add_column(name, justify="right")
    for name, label in _LATENCIES.items():
        values: Distribution | None = getattr(report, name)
        if values is not None:
            numbers = (values.mean, values.p50, values.p90, values.p99)
            table.add_row(label, *("-" if number is None else f"{number:,.1f}" for number in numbers))
    return table


def _total_table(report: Report) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    failed = f"{report.num_failed:,} failed"
    table.add_row("requests", f"{report.num_completed:,} completed, {failed}, in {report.duration_s:.2f} s")
    cached = f" ({report.num_cached_tokens:,} of them cached)" if report.num_cached_tokens else ""
    table.add_row("tokens", f"{report.num_prompt_tokens:,} prompt{cached}, {report.num_output_tokens:,} output")
    table.add_row("requests/s", f"{report.requests_per_s:,.2f}")
    table.add_row("output tokens/s", f"{report.output_tokens_per_s:,.1f}")
    table.add_row("total tokens/s", f"{report.total_tokens_per_s:,.1f}")
    return table


def _error_table(report: Report) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("failed with", "requests", "the first message", box=box.SIMPLE)
    for error in report.errors:
        table.add_row(error.kind, f"{error.count:,}", error.example)
    return table
