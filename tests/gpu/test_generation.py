"""Tokens are the likeliest by exact logits of the same text, however the requests are batched, cut and preempted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gpu_models import WINDOW
from gpu_runs import IS_GPU, PEAK, TEXT_RUNS, Run, regrets
from reference import random_tokens

from pipelines import GenerationOutput, SamplingParams

GREEDY = SamplingParams(max_new_tokens=40, ignore_eos=True)
PROMPTS = [random_tokens(length, 1000, seed=1) for length in (5, 120, 200, WINDOW - 20, 2 * WINDOW + 3)]
PAGE = 128


def assert_likeliest(
    run: Run, prompts: Sequence[list[int]], outputs: Sequence[GenerationOutput], exact_logits: Any, num_layers: int
) -> None:
    """Each token's exact logit is as near to the largest as two errors allow, the token's and the largest's.

    With experts, where a rounding error may lead to another one, that holds for all but a few tokens.
    """
    behind = []
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.finish_reason == "length", output.error
        exact = exact_logits(run.name, (*prompt, *output.tokens))
        behind.append(regrets(output.tokens, exact[len(prompt) - 1 : -1]))
    share = 0.85 if run.has_experts and IS_GPU else 1.0
    assert np.quantile(np.concatenate(behind), share) <= 2 * PEAK * run.bound(num_layers)


@pytest.fixture
def check_tokens(exact_logits: Any, reference: Any) -> Any:
    import torch

    def check(run: Run, prompts: Sequence[list[int]], outputs: Sequence[GenerationOutput]) -> None:
        num_layers = reference(run.name, torch.float64).config.num_hidden_layers
        assert_likeliest(run, prompts, outputs, exact_logits, num_layers)

    return check


@pytest.mark.parametrize("run", TEXT_RUNS, ids=str)
def test_greedy_tokens_of_a_batch(run: Run, load_run: Any, check_tokens: Any) -> None:
    pipe = load_run(run, max_batch_size=5, enable_prefix_caching=False)
    check_tokens(run, PROMPTS, pipe.generate(PROMPTS, GREEDY))


@pytest.mark.parametrize("run", TEXT_RUNS[:2], ids=str)
@pytest.mark.parametrize(
    "settings",
    [{"max_batch_size": 1}, {"max_batch_size": 5, "max_batch_tokens": 64}, {"max_batch_size": 3}],
    ids=["one at a time", "small chunks", "fewer rows than requests"],
)
def test_greedy_tokens_however_they_are_scheduled(
    run: Run, settings: dict[str, int], load_run: Any, check_tokens: Any
) -> None:
    check_tokens(run, PROMPTS, load_run(run, **settings).generate(PROMPTS, GREEDY))


@pytest.mark.parametrize("run", [TEXT_RUNS[0], TEXT_RUNS[1], Run("gemma4", "bfloat16")], ids=str)
def test_preempted_requests_go_on_where_they_were(run: Run, load_run: Any, check_tokens: Any) -> None:
    params = load_run(run, max_batch_size=1).cache.params
    whole = sum(group.max_pages(1024, 256) * group.page_bytes for group in params.groups)
    pipe = load_run(run, max_batch_size=8, max_batch_tokens=256, max_length=1024, kv_cache_memory=int(1.3 * whole))
    prompts = [random_tokens(length, 1000, seed=2) for length in (250, 300, 120, 380, 200, 255)]
    long = SamplingParams(max_new_tokens=150, ignore_eos=True)
    check_tokens(run, prompts, pipe.generate(prompts, long))
    assert pipe.engine.scheduler.num_preemptions > 0
    pipe.cache.check()


@pytest.mark.parametrize("run", [TEXT_RUNS[0], TEXT_RUNS[1], Run("gemma4", "bfloat16")], ids=str)
def test_a_prefix_is_reused_past_the_window(run: Run, load_run: Any, check_tokens: Any) -> None:
    pipe = load_run(run, max_batch_size=4, enable_prefix_caching=True)
    prefix = random_tokens(2 * WINDOW + 40, 1000, seed=3)
    prompts = [prefix + random_tokens(length, 1000, seed=4) for length in (1, 50, 200)]
    before = pipe.engine.stats.num_prefill_tokens
    outputs = [pipe.generate([prompt], GREEDY)[0] for prompt in prompts]
    check_tokens(run, prompts, outputs)
    num_shared = len(prefix) // PAGE * PAGE
    assert pipe.engine.stats.num_prefill_tokens - before == sum(map(len, prompts)) - 2 * num_shared


@pytest.mark.parametrize("run", TEXT_RUNS[:2], ids=str)
def test_log_probabilities_are_those_of_the_exact_logits(
    run: Run, load_run: Any, exact_logits: Any, reference: Any
) -> None:
    import torch

    pipe = load_run(run, max_batch_size=5, enable_prefix_caching=False)
    params = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=1.0, seed=7, logprobs=3)
    outputs = pipe.generate(PROMPTS, params)
    bound = run.bound(reference(run.name, torch.float64).config.num_hidden_layers)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        exact = exact_logits(run.name, (*prompt, *output.tokens))[len(prompt) - 1 : -1]
        scale = np.sqrt(np.square(exact).mean(axis=-1))
        log_probs = exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))
        expected = log_probs[np.arange(20), output.tokens]
        assert output.logprobs is not None
        found = np.array([entry.logprob for entry in output.logprobs])
        assert (np.abs(found - expected) <= 2 * PEAK * bound * scale).all()
