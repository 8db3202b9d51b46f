"""Answers files of requests with Ray Data, on one machine or many; a run that was killed goes on where it stopped.

    pip install -e '.[ray]'
    python examples/ray_batch.py requests.jsonl --output results.jsonl [--model MODEL] [--workers 2] [--address auto]

Each line of a file is a request of OpenAI's Batch API: {"custom_id": "1", "method": "POST", "url":
"/v1/chat/completions", "body": {...}}. Each line of the output is a result: `response` with `status_code` and `body`,
or `error` for a line that is no request. Results come in the order in which they are ready.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import batch_files
import click
import httpx
import ray
from batch_files import Request, append_lines, line_of, refusal_of, result_of, to_do
from ray import cloudpickle
from ray.data import ActorPoolStrategy, DataContext

from pipelines.config import PipelineConfig
from pipelines.errors import InputError
from pipelines.load import load_pipeline
from pipelines.serve.app import create_app
from pipelines.serve.service import Service
from pipelines.serve.settings import ServeSettings

OBJECT_STORE_BYTES = 200 * 2**20


class Worker:
    """A server's application and its engine, without a port: it answers a batch at a time."""

    def __init__(self, config: PipelineConfig, settings: ServeSettings) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._run(self._start(config, settings))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answers requests, which run together in the engine."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        results = self._run(self._answer_all([Request(**row) for row in rows]))
        # As texts: columns of Arrow would give all results the same fields.
        return {"line": list(map(line_of, results)), "status": [each["response"]["status_code"] for each in results]}

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self, config: PipelineConfig, settings: ServeSettings) -> None:
        service = Service(partial(load_pipeline, config), settings)
        app = create_app(service, settings)
        self._lifespan = app.router.lifespan_context(app)
        await self._lifespan.__aenter__()
        await service.is_loaded.wait()
        if service.error is not None:
            raise service.error
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://batch", timeout=None)

    async def _answer_all(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        return await asyncio.gather(*map(self._answer, requests))

    async def _answer(self, request: Request) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        answer = await self._client.post(request.url, content=request.body, headers=headers)
        return result_of(request, answer.status_code, answer.json())


def run(requests: Sequence[Request], config: PipelineConfig, output: Path, num_workers: int, batch_size: int) -> int:
    """Answers requests and appends their results; returns the number of those that did not succeed."""
    num_failed = append_lines(
        output, [line_of(refusal_of(request)) for request in requests if request.error is not None]
    )
    rows = [asdict(request) for request in requests if request.error is None]
    if not rows:
        return num_failed
    settings = ServeSettings(served_model_names=(config.model or "demo",), max_queue_size=batch_size)
    answers = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // batch_size)).map_batches(
        Worker,
        fn_constructor_args=(config, settings),
        batch_size=batch_size,
        compute=ActorPoolStrategy(size=num_workers, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
    )
    num_done = 0
    for batch in answers.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
        num_done += append_lines(output, batch["line"])
        num_failed += int((batch["status"] != 200).sum())
        click.echo(f"{num_done} of {len(rows)}", err=True)
    return num_failed


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Results; kept if there."
)
@click.option("--model", help="As for `pipelines generate`; the demo model if absent.")
@click.option("--devices", default="cpu", show_default=True, help="Devices of each worker.")
@click.option("--max-batch-size", type=int, default=8, show_default=True, help="Requests that a worker runs at once.")
@click.option("--lines", type=click.IntRange(1), default=64, show_default=True, help="Lines that are lost with a kill.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--address", help="Of a Ray cluster (auto: that of this machine); absent: one is started here.")
def main(
    files: tuple[Path, ...],
    output: Path,
    model: str | None,
    devices: str,
    max_batch_size: int,
    lines: int,
    workers: int,
    address: str | None,
) -> None:
    """Answer files of requests."""
    requests = to_do(files, output)
    click.echo(f"{len(requests)} requests are to be answered", err=True)
    if not requests:
        return
    try:
        config = PipelineConfig(model, devices=devices, max_batch_size=max_batch_size, enable_prefix_caching=True)
    except InputError as error:
        raise click.UsageError(str(error)) from None
    if address is None:
        ray.init(num_cpus=workers + 1, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)
    else:
        ray.init(address=address)
    cloudpickle.register_pickle_by_value(batch_files)  # no other machine needs these files
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    DataContext.get_current().enable_progress_bars = False
    num_failed = run(requests, config, output, workers, lines)
    click.echo(f"{len(requests)} results, {num_failed} of them errors, are in {output}", err=True)


if __name__ == "__main__":
    main()
