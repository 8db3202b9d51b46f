"""The engine's random work with real models: sampled, penalized, preempted, cancelled, with shared prefixes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from gpu_runs import TEXT_RUNS, Run
from reference import random_tokens

from pipelines import SamplingParams
from pipelines.context import TextContext

CHOICES: list[dict[str, Any]] = [
    {"ignore_eos": True},
    {"ignore_eos": True, "temperature": 1.0, "seed": 7, "top_p": 0.9},
    {"temperature": 0.7, "seed": 8, "top_k": 5, "logprobs": 2},
    {"ignore_eos": True, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"ignore_eos": True, "prompt_logprobs": 1},
    {"temperature": 1.0, "seed": 9, "min_p": 0.05, "min_tokens": 5},
]


def random_work(seed: int, count: int) -> list[tuple[list[int], SamplingParams]]:
    """Prompts, some with a common beginning, and ways to continue them."""
    rng = random.Random(seed)
    common = random_tokens(400, 1000, seed)
    work = []
    for number in range(count):
        prompt = random_tokens(rng.choice((1, 20, 127, 128, 129, 300, 500)), 1000, seed + number)
        if rng.random() < 0.5:
            prompt = common[: rng.randrange(1, 400)] + prompt[:150]
        work.append((prompt, SamplingParams(max_new_tokens=rng.randrange(5, 80), **rng.choice(CHOICES))))
    return work


def run_randomly(pipe: Any, work: list[tuple[list[int], SamplingParams]], seed: int) -> list[TextContext]:
    """Submits the work bit by bit between steps, cancels a few requests, and checks the cache after every step."""
    rng, waiting, contexts = random.Random(seed), list(work), []
    while waiting or pipe.engine.has_work:
        if waiting and rng.random() < 0.3:
            prompt, params = waiting.pop()
            contexts += pipe.submit([prompt], params)
        if contexts and rng.random() < 0.02:
            pipe.cancel(rng.choice(contexts))
        pipe.engine.step()
        pipe.cache.check()
    return contexts


@pytest.mark.parametrize("run", [*TEXT_RUNS[:2], Run("gemma4", "bfloat16")], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_random_work_ends_as_it_should(run: Run, seed: int, load_run: Callable[..., Any]) -> None:
    params = load_run(run, max_batch_size=1).cache.params
    whole = sum(group.max_pages(1024, 200) * group.page_bytes for group in params.groups)
    pipe = load_run(
        run,
        max_batch_size=8,
        max_batch_tokens=200,
        max_length=1024,
        kv_cache_memory=int(1.5 * whole),
        enable_prefix_caching=True,
    )
    work = random_work(seed, 20)
    for context in run_randomly(pipe, work, seed):
        assert context.finish_reason in ("stop", "length", "cancelled"), context.error
        if context.finish_reason == "length":
            assert context.num_output_tokens == context.params.max_new_tokens
    assert pipe.cache.num_requests == 0
    for group in pipe.cache.params.groups:
        assert pipe.cache.num_free(group.name) == pipe.cache.num_pages(group.name)
    assert pipe.engine.scheduler.num_preemptions > 0
