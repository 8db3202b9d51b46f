"""What each encoding of weights costs in accuracy: the demo model on a text, beside llama.cpp on the same GGUF files.

    python benchmarks/encodings.py [--text FILE] [--tokens 4096] [--encoding q4_0] [--llama-python PYTHON] [--json]

Every system computes the logits of the same tokens, in prompts of 512, and is compared with ours in float32: the
largest and the mean difference of a logit, the mean divergence (KL, in nats), the share of positions with the same
likeliest token, and the perplexity. llama.cpp runs in a process of its own Python, with a float32 cache.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import numpy.typing as npt
from gguf_checkpoint import write_gguf

from pipelines import PipelineConfig, load_pipeline
from pipelines.loading.blocks import FORMATS
from pipelines.loading.checkpoint import DEMO_FOLDER
from pipelines.loading.encodings import encoding
from pipelines.text.tokenizer import TextTokenizer

LENGTH = 512
"""Tokens of a prompt."""
NAMES = ("bfloat16", *FORMATS)
WORKER = Path(__file__).with_name("llama_logits.py")
COLUMNS = ("max diff", "mean diff", "KL", "top-1", "perplexity", "to float32")

Logits = npt.NDArray[np.float32]
Prompts = list[list[int]]


def ours(prompts: Prompts, model: Path | None = None, **settings: str) -> Logits:
    """Our logits of all positions, [T, V]."""
    config = PipelineConfig(None if model is None else str(model), kv_cache_dtype="float32", **settings)  # type: ignore[arg-type]
    with load_pipeline(config) as pipe:
        return np.concatenate([logits for prompt in prompts for _, logits in pipe.logit_slabs(prompt)])


def llama_cpp(python: str, model: Path, prompts: Prompts) -> Logits:
    """llama.cpp's logits of all positions, [T, V]."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "logits.npy"
        command = [python, str(WORKER), str(model), str(path)]
        # MAX sets variables of Python behind its back: the environment is given as Python knows it.
        subprocess.run(command, input=json.dumps(prompts), text=True, check=True, env=dict(os.environ))
        logits: Logits = np.load(path)
    return logits


def compare(found: Logits, exact: Logits, prompts: Prompts) -> dict[str, float]:
    """Compares logits with those in float32."""
    log_p, exact_log_p = log_softmax(found), log_softmax(exact)
    difference = np.abs(found - exact)
    own, reference = perplexity(log_p, prompts), perplexity(exact_log_p, prompts)
    kl = (np.exp(exact_log_p) * (exact_log_p - log_p)).sum(-1).mean()
    same = (found.argmax(-1) == exact.argmax(-1)).mean()
    scores = (difference.max(), difference.mean(), kl, same, own, own / reference - 1)
    return dict(zip(COLUMNS, map(float, scores), strict=True))


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def perplexity(log_p: npt.NDArray[np.float64], prompts: Prompts) -> float:
    """Of each prompt's tokens after its first."""
    losses = []
    for start, prompt in zip(range(0, len(log_p), LENGTH), prompts, strict=True):
        losses += [-log_p[start + i, token] for i, token in enumerate(prompt[1:])]
    return float(np.exp(statistics.fmean(losses)))


def measure(
    names: Sequence[str], prompts: Prompts, llama_python: str | None, folder: Path
) -> dict[str, dict[str, float]]:
    """Compares encodings, with all types of activations that they have."""
    exact, results = ours(prompts, quantization_encoding="float32"), {}
    for name in names:
        path = write_gguf(DEMO_FOLDER, folder / f"{name}.gguf", name)
        for activations in encoding(name).product_dtypes:
            found = ours(prompts, path, activation_encoding=activations.name)
            results[f"{name}, {activations.name}"] = compare(found, exact, prompts)
        if llama_python is not None:
            results[f"{name}, llama.cpp"] = compare(llama_cpp(llama_python, path, prompts), exact, prompts)
    return results


def print_table(results: dict[str, dict[str, float]]) -> None:
    click.echo(f"| encoding, activations | {' | '.join(COLUMNS)} |\n| --- |{' --- |' * len(COLUMNS)}")
    for name, scores in results.items():
        cells = [f"{scores[column]:.2g}" for column in COLUMNS[:3]]
        cells += [f"{scores['top-1']:.2%}", f"{scores['perplexity']:.3f}", f"{scores['to float32']:+.2%}"]
        click.echo(f"| {name} | {' | '.join(cells)} |")


@click.command(help=__doc__)
@click.option("--text", type=click.Path(exists=True, path_type=Path), default=Path(statistics.__file__))
@click.option("--tokens", default=4096, show_default=True)
@click.option("--llama-python", help="A Python with llama-cpp-python.")
@click.option("--encoding", "names", type=click.Choice(NAMES), multiple=True, help="Only these.")
@click.option("--json", "as_json", is_flag=True)
def main(text: Path, tokens: int, llama_python: str | None, names: tuple[str, ...], as_json: bool) -> None:
    ids = TextTokenizer.from_pretrained(DEMO_FOLDER).encode(text.read_text())
    count = min(tokens, len(ids)) // LENGTH
    prompts = [ids[i * LENGTH : (i + 1) * LENGTH] for i in range(count)]
    with TemporaryDirectory() as folder:
        results = measure(names or NAMES, prompts, llama_python, Path(folder))
    if as_json:
        json.dump(results, sys.stdout, indent=1)
    else:
        print_table(results)


if __name__ == "__main__":
    main()
