"""Speed of random models in published shapes on a GPU, beside transformers on the same one.

    python benchmarks/gpu.py --work /tmp/gpu --output gpu.jsonl [--model qwen3-8b] [--row decode] [--batch 64]

Each model in each system is a process of its own, so that the memory of one is free for the next. Every result is a
line of JSON, on stdout and in the output, as soon as it is there: a run that is cut keeps what it has. Rows:

- machine: what torch measures of the GPU, a copy of memory and a bfloat16 product: the shares below are of these.
- load: seconds, and memory as it was planned and as the device reports it.
- decode: tokens a second of a batch of rows that have 128 tokens each, by the engine, with the share of the bandwidth
  that reading weights and cache once a step takes.
- prefill: tokens a second of one prompt, with the share of the arithmetic that its products take.
- step: where the time of a decode step goes: host, copies, kernels (gpu_worker.py).

Weights are views of one block of noise: nothing is read or written at their size (random_weights.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click

WORKER = Path(__file__).with_name("gpu_worker.py")
MODELS = {
    "demo": ("demo", "bfloat16"),
    "gemma-3-1b": ("google__gemma-3-1b-it", "bfloat16"),
    "gemma-3-4b": ("google__gemma-3-4b-it", "bfloat16"),
    "qwen3-8b": ("Qwen__Qwen3-8B", "bfloat16"),
    "qwen3-8b-fp8": ("Qwen__Qwen3-8B-FP8", "float8_e4m3fn"),
    "qwen3-30b-a3b": ("Qwen__Qwen3-30B-A3B", "bfloat16"),
    "qwen3-30b-a3b-fp8": ("Qwen__Qwen3-30B-A3B-FP8", "float8_e4m3fn"),
}
"""Names -> a folder of tests/configs, or the bundled demo, and the encoding."""
DEFAULT_MODELS = ("gemma-3-1b", "qwen3-8b", "gemma-3-4b", "qwen3-8b-fp8", "qwen3-30b-a3b")
SYSTEMS = ("pipelines", "transformers")
ROWS = ("load", "decode", "prefill", "step")


def run_worker(settings: dict[str, Any], output: Path, seconds: float) -> None:
    """Runs one system on one model; passes its lines on as they come."""
    command = [sys.executable, str(WORKER), json.dumps(settings)]
    environment = dict(os.environ)  # without the PYTHONEXECUTABLE that MAX sets unseen by Python
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        for line in process.stdout:
            record(output, line.strip())
        code = process.wait()
        timer.cancel()
    if code:
        ended = {key: settings[key] for key in ("system", "model")} | {"row": "error", "exit_code": code}
        record(output, json.dumps(ended))


def record(output: Path, line: str) -> None:
    """Prints a result, and appends it to the output."""
    click.echo(line)
    with output.open("a") as file:
        file.write(line + "\n")


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the empty checkpoints.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("gpu.jsonl"), show_default=True)
@click.option("--model", "models", type=click.Choice(list(MODELS)), multiple=True, default=DEFAULT_MODELS)
@click.option("--system", "systems", type=click.Choice(SYSTEMS), multiple=True, default=SYSTEMS)
@click.option("--row", "rows", type=click.Choice(ROWS), multiple=True, default=ROWS)
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8, 64, 256), show_default=True)
@click.option("--prompt", "prompts", type=int, multiple=True, default=(512, 4096, 32768), show_default=True)
@click.option("--devices", default="gpu", show_default=True)
@click.option("--max-batch-tokens", type=int, help="Of a step.  [default: the package's]")
@click.option("--steps", type=int, default=32, show_default=True, help="Measured in each row.")
@click.option("--seconds", type=float, default=540.0, show_default=True, help="Nothing is started or goes on later.")
def main(models: tuple[str, ...], systems: tuple[str, ...], output: Path, seconds: float, **settings: Any) -> None:
    """Measure models on a GPU, a line of JSON for each result."""
    end = time.monotonic() + seconds
    settings["work"] = str(settings["work"])
    run_worker({"system": "machine", "model": "none"} | settings, output, seconds)
    for name in models:
        folder, encoding = MODELS[name]
        for system in systems:
            if system == "transformers" and encoding == "float8_e4m3fn":
                continue  # its float8 kernels are downloaded
            left = end - time.monotonic()
            if left > 0:
                chosen = {"system": system, "model": name, "folder": folder, "encoding": encoding}
                run_worker(chosen | settings, output, left)


if __name__ == "__main__":
    main()
