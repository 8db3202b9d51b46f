"""A system in a process of its own: it loads a model, then answers requests for measurements, a JSON line each.

`generate.py` starts it: `worker.py SYSTEM MODEL MAX_LENGTH ENCODING`. A request is {"depth": tokens, "new": tokens}.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Generate = Callable[[list[int], int], Iterator[float]]
"""A function (prompt, number of new tokens) -> the times at which greedy tokens were generated."""

START = time.perf_counter()


def open_pipelines(model: Path, max_length: int, encoding: str) -> tuple[Generate, dict[str, Any]]:
    """Loads a model in this package: its generator, and the times and sizes of its start."""
    from architectures.decoder.model import DecoderModel
    from pipelines import PipelineConfig, SamplingParams, load_pipeline
    from pipelines.stages import NullStages

    stages = NullStages()
    config = PipelineConfig(model=str(model), max_length=max_length, max_batch_size=1, quantization_encoding=encoding)
    pipe = load_pipeline(config, stages)
    assert isinstance(pipe.model, DecoderModel)

    def generate(prompt: list[int], num_new: int) -> Iterator[float]:
        for _ in pipe.stream(prompt, SamplingParams(max_new_tokens=num_new, ignore_eos=True)):
            yield time.perf_counter()

    return generate, {
        "stages_s": {name: round(seconds, 2) for name, seconds in stages.timings},
        "weights_mib": sum(map(num_bytes, pipe.model.weights.values())) / 2**20,
        "cache_mib": pipe.cache.memory_bytes / 2**20,
    }


def num_bytes(weight: Any) -> int:
    """Size of an array or a Buffer."""
    itemsize = weight.itemsize if isinstance(weight, np.ndarray) else weight.dtype.size_in_bytes
    return math.prod(weight.shape) * itemsize


def open_transformers(model: Path, max_length: int, encoding: str) -> tuple[Generate, dict[str, Any]]:
    """Loads a model in transformers, in float32."""
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

    return generate, {}


def measure(generate: Generate, depth: int, num_new: int) -> dict[str, float]:
    """Measures a prompt of `depth` tokens and `num_new` after it."""
    prompt = np.random.default_rng(depth).integers(10, 1000, depth).tolist()
    start = time.perf_counter()
    times = list(generate(prompt, num_new))
    return {"time_to_first_token_s": times[0] - start, "decode_step_s": float(np.median(np.diff(times)))}


def main(system: str, model: str, max_length: str, encoding: str) -> None:
    """Loads a system and answers the requests on standard input."""
    opened = {"pipelines": open_pipelines, "transformers": open_transformers}[system]
    generate, facts = opened(Path(model), int(max_length), encoding)
    first = next(generate([5, 6, 7, 8], 1))
    print(json.dumps({"start_to_first_token_s": first - START, **facts}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        result = measure(generate, request["depth"], request["new"])
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**result, "peak_rss_mib": peak_mib}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
