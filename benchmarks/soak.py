"""A server under load: nothing is lost, mixed up, leaked or stalled. Exits with 1 if a check fails.

    python benchmarks/soak.py [--shape google__gemma-3-1b-it | --model FOLDER] [--requests 2000] [--only crowd ...]

It starts `pipelines serve` and drives it over HTTP. Whether a check holds depends on no machine's speed, except where
it says so; times are printed beside it.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import click
import httpx
import psutil
from checkpoints import read_tensor_list, write_random_checkpoint
from generate import CONFIGS, DEMO
from soak_checks import CHECKS, Load


@contextmanager
def server(model: Path, options: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server's process and its address; it is ended with SIGTERM, and must exit with 0."""
    command = [
        str(Path(sys.executable).with_name("pipelines")),
        "serve",
        "--model",
        str(model),
        "--port",
        "0",
        *options,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"listening on (http://\S+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        try:
            yield process, found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
            drain.wait()
            click.echo(f"the server ended with {code}")


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that is ready."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        while (await client.get("/ready")).status_code != 200:
            await asyncio.sleep(0.2)
        yield client


async def run(url: str, pid: int, names: tuple[str, ...], *sizes: int) -> bool:
    """Runs the checks one after the other."""
    is_good = True
    async with client_of(url) as client:
        for name in names:
            click.echo(f"{name}: {CHECKS[name].__doc__}")
            holds = await CHECKS[name](Load(client, psutil.Process(pid), *sizes))
            click.echo(f"  {'holds' if holds else 'FAILS'}")
            is_good &= holds
    return is_good


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--model", type=click.Path(path_type=Path), help="A checkpoint.  [default: the demo]")
@click.option("--shape", metavar="NAME", help="Random weights in a published shape.")
@click.option("--requests", type=int, default=2000, show_default=True)
@click.option("--concurrency", type=int, default=64, show_default=True)
@click.option("--cuts", "num_cuts", type=int, default=300, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(CHECKS)), help="May be repeated.  [default: all]")
@click.argument("options", nargs=-1)
def main(
    model: Path | None,
    shape: str | None,
    requests: int,
    concurrency: int,
    num_cuts: int,
    only: tuple[str, ...],
    options: tuple[str, ...],
) -> None:
    """Run the checks; OPTIONS go to `pipelines serve`."""
    with tempfile.TemporaryDirectory() as folder:
        if shape is not None:
            tensors = read_tensor_list(CONFIGS / shape / "tensors.json")
            model = write_random_checkpoint(Path(folder), CONFIGS / shape / "config.json", tensors, DEMO)
        with server(model or DEMO, list(options)) as (process, url):
            is_good = asyncio.run(run(url, process.pid, only or tuple(CHECKS), requests, concurrency, num_cuts))
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
