"""`pipelines serve` beside llama.cpp's server for Python, on the same weights, under the load of `pipelines benchmark`.

    python benchmarks/serve.py --llama-python /elsewhere/bin/python [--model FOLDER | --shape google__gemma-3-1b-it]

The interpreter has `pip install 'llama-cpp-python[server]'`, best in an environment of its own; this one has
`pip install 'graph-pipelines[benchmark]'`, whose gguf writes the weights for llama.cpp. `--shape` makes a random
checkpoint in a published shape. Both servers stay loaded and take turns with the same requests, so that a machine whose
speed drifts slows both. The output has the medians, and the median of the ratios turn by turn.

llama.cpp runs with all cores, with logits of the last position alone, and with its default cache in float16; ours is in
float32. Its server for Python computes one request after the other (llama.cpp's own, in C++, runs them side by side),
so with `--concurrency` above 1 requests wait for each other there. It knows no `ignore_eos`: end tokens get a bias.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import httpx
from checkpoints import read_tensor_list, write_random_checkpoint
from generate import CONFIGS, DEMO, processor
from gguf_checkpoint import FILE_TYPES, pad_tokenizer, write_gguf

COMMAND = Path(sys.executable).with_name("pipelines")
NAME = "benchmark"
START_TIMEOUT_S = 1800  # ours compiles a graph the first time
LATENCIES = {"ttft_ms": "time to first token", "tpot_ms": "time per output token", "e2e_ms": "end-to-end latency"}
RATES = {
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "output tokens/s",
    "total_tokens_per_s": "total tokens/s",
}


class Server:
    """A server in a process of its own. load_options: options of `pipelines benchmark` for it."""

    def __init__(self, command: list[str], ready_path: str, load_options: tuple[str, ...] = ()) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url, self.load_options = f"http://127.0.0.1:{port}", load_options
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (it lasts as long as the process)
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=self.log,
            stderr=self.log,
            env=dict(os.environ),  # without the PYTHONEXECUTABLE that MAX sets unseen by Python
        )
        self._wait_for(ready_path)

    def measure(self, options: list[str]) -> dict[str, Any]:
        """Runs one load and returns its numbers."""
        command = [str(COMMAND), "benchmark", "--url", self.url, "--json", *options, *self.load_options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode:
            raise click.ClickException(f"{shlex.join(command)}\n{done.stderr}{done.stdout}")
        return json.loads(done.stdout)

    def close(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def _wait_for(self, path: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if httpx.get(self.url + path, timeout=10).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.log.seek(0)
                raise click.ClickException(self.log.read().decode(errors="replace")[-2000:])
            time.sleep(0.2)


def start_ours(model: Path, encoding: str, max_length: int, max_batch_size: int) -> Server:
    """Starts `pipelines serve`."""
    command = [str(COMMAND), "serve", "--model", str(model), "--served-model-name", NAME]
    command += ["--quantization-encoding", encoding, "--max-length", str(max_length)]
    return Server([*command, "--max-batch-size", str(max_batch_size)], "/ready")


def start_llama(python: Path, model: Path, gguf: Path, max_length: int) -> Server:
    """Starts llama.cpp's server for Python."""
    command = [str(python), "-m", "llama_cpp.server", "--model", str(gguf), "--model_alias", NAME]
    settings = {
        "n_ctx": max_length,
        "n_threads": os.cpu_count(),
        "n_threads_batch": os.cpu_count(),
        "logits_all": False,
        "interrupt_requests": False,
        "verbose": False,
    }
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    ends = json.loads((model / "config.json").read_text())["eos_token_id"]
    bias = {str(token): -100 for token in (ends if isinstance(ends, list) else [ends])}
    return Server(command, "/v1/models", ("--extra-body", json.dumps({"logit_bias": bias})))


def report(concurrency: int, rounds: list[dict[str, dict[str, Any]]]) -> None:
    """Prints the medians of each number, and the median of the ratios: above 1, ours is better."""
    click.echo(f"\nat most {concurrency} in flight")
    for name, label in {**RATES, **LATENCIES}.items():
        turns = [
            {system: turn[system][name]["p50"] if name in LATENCIES else turn[system][name] for system in turn}
            for turn in rounds
        ]
        ours, llama = (statistics.median(turn[system] for turn in turns) for system in ("pipelines", "llama.cpp"))
        ratios = [turn["pipelines"] / turn["llama.cpp"] for turn in turns]
        ratio = statistics.median(1 / each if name in LATENCIES else each for each in ratios)
        unit = ", ms (median of p50)" if name in LATENCIES else ""
        click.echo(f"  {label}{unit}: pipelines {ours:,.2f}, llama.cpp {llama:,.2f}; {ratio:.2f}x llama.cpp")


def compare(systems: dict[str, Server], concurrencies: tuple[int, ...], num_rounds: int, options: list[str]) -> None:
    """Measures both by turns, each round with prompts of its own, and prints the numbers."""
    for concurrency in concurrencies:
        rounds = []
        for seed in range(num_rounds):
            load = [*options, "--concurrency", str(concurrency), "--seed", str(1000 * concurrency + seed)]
            rounds.append({name: server.measure(load) for name, server in systems.items()})
        for system in systems:
            counts = {(turn[system]["num_prompt_tokens"], turn[system]["num_output_tokens"]) for turn in rounds}
            click.echo(f"{system}: prompt and output tokens of a round {sorted(counts)}")
        report(concurrency, rounds)


def describe(model: str, python: Path) -> None:
    """Prints what was measured, and on what."""
    code = "import importlib.metadata as m; print(m.version('llama-cpp-python'))"
    llama = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    click.echo(processor())
    click.echo(f"{model}; graph-pipelines {version('graph-pipelines')}, max {version('max')}, llama-cpp-python {llama}")
    click.echo(shlex.join(["python", *sys.argv]))


@click.command()
@click.option("--llama-python", required=True, type=click.Path(exists=True, path_type=Path), help="With llama_cpp.")
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="A checkpoint.  [default: the demo]")
@click.option("--shape", type=click.Choice(sorted(p.name for p in CONFIGS.glob("google__gemma-3-*"))), help="Random.")
@click.option("--encoding", type=click.Choice(list(FILE_TYPES)), default="float32", show_default=True)
@click.option("--concurrency", "concurrencies", type=int, multiple=True, default=(1, 4), show_default=True)
@click.option("--num-requests", type=int, default=8, show_default=True, help="In each turn.")
@click.option("--prompt-tokens", type=int, default=256, show_default=True)
@click.option("--output-tokens", type=int, default=32, show_default=True)
@click.option("--rounds", type=int, default=3, show_default=True)
def main(
    llama_python: Path,
    model: Path | None,
    shape: str | None,
    encoding: str,
    concurrencies: tuple[int, ...],
    num_requests: int,
    prompt_tokens: int,
    output_tokens: int,
    rounds: int,
) -> None:
    """Measure `pipelines serve` beside llama.cpp's server for Python."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the servers would stay
    describe(f"{shape or model or 'demo'} in {encoding}", llama_python)
    max_length = prompt_tokens + output_tokens + 16
    options = ["--num-requests", str(num_requests), "--prompt-tokens", str(prompt_tokens)]
    options += ["--output-tokens", str(output_tokens)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = prepare(folder / "model", model or DEMO, shape)
        gguf = write_gguf(checkpoint, folder / "model.gguf", encoding)
        systems = {"pipelines": start_ours(checkpoint, encoding, max_length, max(concurrencies))}
        try:
            systems["llama.cpp"] = start_llama(llama_python, checkpoint, gguf, max_length)
            compare(systems, concurrencies, rounds, options)
        finally:
            for server in systems.values():
                server.close()


def prepare(folder: Path, model: Path, shape: str | None) -> Path:
    """Returns the checkpoint to measure: a random one in a shape, or a copy of the model."""
    if shape is None:
        return shutil.copytree(model, folder)
    tensors = read_tensor_list(CONFIGS / shape / "tensors.json")
    write_random_checkpoint(folder, CONFIGS / shape / "config.json", tensors, DEMO)
    pad_tokenizer(folder)
    return folder


if __name__ == "__main__":
    main()
