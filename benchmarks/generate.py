"""Prefill, decode, start-up and memory of a model, beside transformers in float32 on the same machine.

    python benchmarks/generate.py [--model FOLDER | --shape google__gemma-3-1b-it] [--depth 512 --depth 8192]

Both systems stay loaded and take turns, so that a machine whose speed drifts slows both. The output has the medians,
and the median of the ratios turn by turn. `--shape` makes a random checkpoint in a published shape. The first start
compiles the graph, so start-up is measured with a second start.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from checkpoints import read_tensor_list, write_random_checkpoint

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "tests" / "configs"
DEMO = HERE.parent / "pipelines" / "demo-base"
SYSTEMS = ("pipelines", "transformers")


class Worker:
    """One of the two systems, in a process of its own."""

    def __init__(self, system: str, model: Path, max_length: int, encoding: str = "auto") -> None:
        self.command = [sys.executable, str(HERE / "worker.py"), system, str(model), str(max_length), encoding]
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.start = self._read()

    def measure(self, depth: int, num_new: int) -> dict[str, float]:
        """Measures a prompt of `depth` tokens and `num_new` new ones: seconds and peak memory."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"depth": depth, "new": num_new}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f"{' '.join(self.command)} ended with {self.process.wait()}")
        return json.loads(line)


def compare(model: Path, depths: list[int], num_new: int, num_rounds: int, encoding: str) -> None:
    """Measures both systems by turns and prints medians and ratios."""
    max_length = max(depths) + num_new
    Worker("pipelines", model, max_length, encoding).close()  # compiles the graph
    workers = {system: Worker(system, model, max_length, encoding) for system in SYSTEMS}
    for system, worker in workers.items():
        click.echo(f"{system}: start to first token {worker.start.pop('start_to_first_token_s'):.1f} s {worker.start}")
    peaks = {}
    for depth in depths:
        rounds = [{system: workers[system].measure(depth, num_new) for system in SYSTEMS} for _ in range(num_rounds)]
        peaks = {system: rounds[-1][system]["peak_rss_mib"] for system in SYSTEMS}
        for name in ("time_to_first_token_s", "decode_step_s"):
            report(depth, name, rounds)
    for system, peak in peaks.items():
        click.echo(f"{system}: peak RSS {peak:.0f} MiB")
    for worker in workers.values():
        worker.close()


def report(depth: int, name: str, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Prints the medians of one measurement, and the median of the ratios."""
    values = {system: statistics.median(r[system][name] for r in rounds) for system in SYSTEMS}
    ratio = statistics.median(r["transformers"][name] / r["pipelines"][name] for r in rounds)
    num_tokens = depth if name == "time_to_first_token_s" else 1
    speeds = ", ".join(f"{s} {v * 1e3:.1f} ms ({num_tokens / v:.1f} tokens/s)" for s, v in values.items())
    label = "prefill" if name == "time_to_first_token_s" else "decode step"
    click.echo(f"depth {depth}, {label}: {speeds}; {ratio:.2f}x transformers")


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="A checkpoint.  [default: the demo]")
@click.option("--shape", type=click.Choice(sorted(p.name for p in CONFIGS.iterdir())), help="Random weights.")
@click.option("--depth", "depths", type=int, multiple=True, default=(256, 768), show_default=True)
@click.option("--new-tokens", type=int, default=16, show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
@click.option("--encoding", default="auto", show_default=True, help="Of ours; transformers runs in float32.")
def main(
    model: Path | None, shape: str | None, depths: tuple[int, ...], new_tokens: int, rounds: int, encoding: str
) -> None:
    """Measure prefill, decode, start-up and memory beside transformers."""
    click.echo(f"{platform.machine()}, {processor()}")
    with tempfile.TemporaryDirectory() as folder:
        if shape is not None:
            tensors = read_tensor_list(CONFIGS / shape / "tensors.json")
            model = write_random_checkpoint(Path(folder), CONFIGS / shape / "config.json", tensors, DEMO)
        compare(model or DEMO, list(depths), new_tokens, rounds, encoding)


def processor() -> str:
    """Number and name of the machine's processors."""
    names = [line.partition(":")[2].strip() for line in cpuinfo() if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def cpuinfo() -> list[str]:
    """Lines of /proc/cpuinfo, if there is one."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
