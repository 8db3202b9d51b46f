"""`pipelines` beside `max generate`, on one checkpoint of Llama 3, the family that MAX itself runs on CPU.

    python benchmarks/max_generate.py --max-command /elsewhere/bin/max [--model FOLDER]

MAX's command comes with `pip install 'max[serve]'`, best in an environment of its own. Without a model a random one in
the shape of Llama 3.2 1B is made. MAX measures its own second run of a prompt, ours runs as many tokens, and the two
take turns. The output has the medians, and the median of the ratios turn by turn.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
from pathlib import Path

import click
from checkpoints import read_tensor_list, write_random_checkpoint
from generate import CONFIGS, DEMO, Worker, processor

MAX_LENGTH = 2048
FIGURES = {
    "depth": r"Prompt size: (\d+)",
    "prefill_ms": r"Time to first token: ([\d.]+) ms",
    "decode_ms": r"Time per Output Token: ([\d.]+) ms",
}


def measure_max(command: list[str]) -> dict[str, float]:
    """Runs MAX's command and reads the figures that it prints."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    output = result.stdout + result.stderr
    found = {name: re.search(pattern, output) for name, pattern in FIGURES.items()}
    if result.returncode or not all(found.values()):
        raise click.ClickException(f"{' '.join(command)[:200]}\n{output[-2000:]}")
    return {name: float(match[1]) for name, match in found.items() if match}


def measure_ours(worker: Worker, depth: int, num_new: int) -> dict[str, float]:
    """Measures `pipelines` with as many tokens, in the units of `measure_max`."""
    times = worker.measure(depth, num_new)
    return {"prefill_ms": 1e3 * times["time_to_first_token_s"], "decode_ms": 1e3 * times["decode_step_s"]}


@click.command()
@click.option("--max-command", required=True, type=click.Path(exists=True, path_type=Path), help="MAX's own command.")
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="A checkpoint of Llama 3.")
@click.option("--encoding", "encodings", multiple=True, default=("float32", "bfloat16"), help="Of ours.")
@click.option("--prompt-words", type=int, default=512, show_default=True)
@click.option("--new-tokens", type=int, default=24, show_default=True)
@click.option("--rounds", type=int, default=3, show_default=True)
def main(
    max_command: Path, model: Path | None, encodings: tuple[str, ...], prompt_words: int, new_tokens: int, rounds: int
) -> None:
    """Measure prefill and decode beside MAX's own command."""
    click.echo(processor())
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            shape = CONFIGS / "meta-llama__Llama-3.2-1B-Instruct"
            tensors = read_tensor_list(shape / "tensors.json")
            model = write_random_checkpoint(Path(folder), shape / "config.json", tensors, DEMO)
        command = [str(max_command), "generate", "--model", str(model), "--devices", "cpu"]
        command += ["--quantization-encoding", "float32", "--max-length", str(MAX_LENGTH), "--max-batch-size", "1"]
        command += ["--prompt", "import os " * (prompt_words // 2), "--max-new-tokens", str(new_tokens)]
        command += ["--top-k", "1", "--num-warmups", "1", "--no-enable-prefix-caching"]
        turns = []
        for _ in range(rounds):
            turn = {"max": measure_max(command)}
            depth = int(turn["max"]["depth"])
            for encoding in encodings:
                worker = Worker("pipelines", model, MAX_LENGTH, encoding)
                turn[encoding] = measure_ours(worker, depth, new_tokens)
                worker.close()
            turns.append(turn)
    for name in ("prefill_ms", "decode_ms"):
        for system in turns[0]:
            time_ms = statistics.median(turn[system][name] for turn in turns)
            ratio = statistics.median(turn["max"][name] / turn[system][name] for turn in turns)
            click.echo(f"{depth} tokens, {name}: {system} {time_ms:.1f}, {ratio:.2f}x max")


if __name__ == "__main__":
    main()
