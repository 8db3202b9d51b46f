"""Cost of constrained decoding per token, for the vocabulary of a tokenizer, without a model.

    python benchmarks/constraints.py --tokenizer FOLDER [--family gemma4] [--rounds 5]

Follows texts that a model could write. `prepare` (the mask, and its form for numpy) runs while the model computes the
step; `apply`, `accept` and `forced` (the tokens that must follow) come after it, as does the sampling of a row, which
is printed beside them. All in milliseconds a token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from pipelines.sampling.constraints import Constraint, ConstraintCompiler, Thinking, tool_call_constraint
from pipelines.sampling.params import SamplingParams
from pipelines.sampling.sampler import Sampler
from pipelines.text.parsers.families import REASONING_FORMATS
from pipelines.text.tokenizer import TextTokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "days": {"type": "array", "items": {"type": "integer"}},
        "text": {"type": "string"},
    },
    "required": ["name", "days", "text"],
    "additionalProperties": False,
}
PROSE = "The weather is a matter of opinion, as everyone knows: 5 < 6, `x = [1]`.\n\n" * 4
ANSWER = json.dumps({"name": "Some name of somebody", "days": [1, 22, 333], "text": PROSE})
STAGES = ("prepare", "apply", "accept", "forced")


def measure(constraint: Constraint, tokens: list[int], logits_V: NDArray[np.float32]) -> dict[str, list[float]]:
    """Milliseconds of each stage, token by token; forced tokens are looked for, and not skipped."""
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def timed(stage: str, call: Callable[[], object]) -> None:
        start = time.perf_counter()
        call()
        times[stage].append(1000 * (time.perf_counter() - start))

    for token in tokens:
        row = logits_V.copy()
        timed("prepare", constraint.prepare)
        timed("apply", partial(constraint.apply, row))
        timed("accept", partial(constraint.accept, token))
        timed("forced", constraint.forced_tokens)
    return times


def sampling_ms(logits_V: NDArray[np.float32], num_rows: int = 50) -> float:
    """Milliseconds of the choice of one token, at temperature 1."""
    sampler = Sampler(SamplingParams(temperature=1.0, seed=0).resolved(), [1], [])
    start = time.perf_counter()
    for _ in range(num_rows):
        sampler.sample(logits_V)
    return 1000 * (time.perf_counter() - start) / num_rows


def cases(compiler: ConstraintCompiler, family: str) -> dict[str, tuple[Constraint, str]]:
    """Constraints, each with a text that it allows."""
    strict = {"function": {"name": "f", "parameters": SCHEMA, "strict": True}}
    free = tool_call_constraint(compiler, family, [strict], "auto")
    assert free is not None
    made = {
        "a JSON schema": (compiler.json_schema(SCHEMA), ANSWER),
        "a regex": (compiler.regex("(?s).*"), PROSE),
        "text beside strict tools": (free, PROSE),
    }
    for format in REASONING_FORMATS:
        if format.name == family:
            made["thinking before a schema"] = compiler.json_schema(SCHEMA, Thinking(format.syntax, True)), PROSE
    return made


@click.command()
@click.option("--tokenizer", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--family", default="gemma4", show_default=True, help="Of the tool calls: qwen3, gemma4, llama3, gemma3.")
@click.option("--rounds", default=5, show_default=True)
def main(tokenizer: Path, family: str, rounds: int) -> None:
    """Prints a table."""
    text = TextTokenizer.from_pretrained(tokenizer)
    compiler = ConstraintCompiler(text, text.vocab_size, text.eos_token_ids)
    start = time.perf_counter()
    compiler.warm_up()
    print(f"{text.vocab_size} tokens, prepared in {time.perf_counter() - start:.1f} s")
    logits_V = np.random.default_rng(0).standard_normal(text.vocab_size, np.float32)
    print(f"sampling a row at temperature 1: {sampling_ms(logits_V):.3f} ms")
    print(f"{'median / 99th percentile':28}" + "".join(f"{stage:>18}" for stage in STAGES))
    for name, (constraint, written) in cases(compiler, family).items():
        tokens = text.encode(written, add_special_tokens=False)
        all_rounds = [measure(constraint.copy(), tokens, logits_V) for _ in range(rounds)]
        cells = []
        for stage in STAGES:
            values = [value for each in all_rounds for value in each[stage]]
            cells.append(f"{np.median(values):9.3f} /{np.quantile(values, 0.99):7.3f}")
        print(f"{name:28}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
