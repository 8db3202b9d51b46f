"""One measurement of one system in a process of its own; prints a JSON object. `generate.py` runs it."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

PROCESS_START = time.perf_counter()


def measure(
    open_system: Callable[[Path, int], Callable[[list[int], int], Iterator[float]]],
    model: Path,
    depths: list[int],
    num_new: int,
) -> dict[str, Any]:
    """Start-up, then for each depth a prompt of that many tokens and `num_new` greedy tokens after it."""
    generate = open_system(model, max(depths) + num_new + 8)
    first = next(generate([5, 6, 7, 8], 1))
    result: dict[str, Any] = {"start_to_first_token_s": first - PROCESS_START}
    rng = np.random.default_rng(0)
    for depth in depths:
        prompt = rng.integers(10, 1000, depth).tolist()
        start = time.perf_counter()
        times = list(generate(prompt, num_new))
        steps = np.diff(times)
        result[f"depth_{depth}"] = {
            "time_to_first_token_s": times[0] - start,
            "prefill_tokens_per_s": depth / (times[0] - start),
            "decode_step_s": float(np.median(steps)),
            "decode_tokens_per_s": 1 / float(np.median(steps)),
        }
    result["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def open_pipelines(model: Path, max_length: int) -> Callable[[list[int], int], Iterator[float]]:
    from pipelines import PipelineConfig, SamplingParams, load_pipeline
    from pipelines.progress import NullStages

    stages = NullStages()
    pipe = load_pipeline(PipelineConfig(model=str(model), max_length=max_length, max_batch_size=1), stages)
    SYSTEM_NOTES.update(
        stages={name: round(seconds, 3) for name, seconds in stages.timings},
        weights_mib=sum(math.prod(weight.shape) for weight in pipe.model.weights.values()) * 4 / 2**20,
        cache_mib=pipe.cache.memory_bytes / 2**20,
    )

    def generate(prompt: list[int], num_new: int) -> Iterator[float]:
        for _ in pipe.stream(prompt, SamplingParams(max_new_tokens=num_new, ignore_eos=True)):
            yield time.perf_counter()

    return generate


def open_transformers(model: Path, max_length: int) -> Callable[[list[int], int], Iterator[float]]:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    @torch.inference_mode()
    def generate(prompt: list[int], num_new: int) -> Iterator[float]:
        cache, tokens = DynamicCache(config=reference.config), torch.tensor([prompt])
        for _ in range(num_new):
            logits = reference(tokens, past_key_values=cache, logits_to_keep=1).logits
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            yield time.perf_counter()

    return generate


SYSTEMS = {"pipelines": open_pipelines, "transformers": open_transformers}
SYSTEM_NOTES: dict[str, Any] = {}


@click.command()
@click.argument("system", type=click.Choice(sorted(SYSTEMS)))
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--depth", "depths", type=int, multiple=True, default=(512,))
@click.option("--new-tokens", type=int, default=32)
def main(system: str, model: Path, depths: tuple[int, ...], new_tokens: int) -> None:
    result = measure(SYSTEMS[system], model, list(depths), new_tokens)
    click.echo(json.dumps({"system": system, **result, **SYSTEM_NOTES}))


if __name__ == "__main__":
    main()
