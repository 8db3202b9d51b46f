"""Logits of all positions equal transformers' on the same device, across the window, in chunks and in batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gpu_models import WINDOW
from gpu_runs import IS_GPU, TEXT_RUNS, Reference, Run, tf32, token_errors
from reference import random_tokens

LENGTHS = (1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW)
PROMPTS = [random_tokens(length, 1000) for length in LENGTHS]
BATCHED: dict[str, Any] = {"max_batch_size": 5, "enable_prefix_caching": False}


@pytest.mark.parametrize("run", TEXT_RUNS, ids=str)
def test_a_prompt_at_a_time(run: Run, load_run: Any, check_errors: Any) -> None:
    pipe = load_run(run, max_batch_size=1)
    for tokens in PROMPTS:
        check_errors(run, tokens, pipe.logits([tokens])[0])


@pytest.mark.parametrize("run", TEXT_RUNS, ids=str)
@pytest.mark.parametrize("chunk", [7, 100, 2048])
def test_a_ragged_batch_in_chunks(run: Run, chunk: int, load_run: Any, check_errors: Any) -> None:
    """Chunks of 7 tokens: every step is several decodes beside a short prefill, whose rows are in all stages."""
    prompts = PROMPTS[:4] if chunk == 7 else PROMPTS
    pipe = load_run(run, max_batch_tokens=chunk, **BATCHED)
    for tokens, ours in zip(prompts, pipe.logits(prompts), strict=True):
        check_errors(run, tokens, ours)


@pytest.mark.parametrize("run", [run for run in TEXT_RUNS if not run.is_float8], ids=str)
def test_errors_are_those_of_the_type(
    run: Run,
    load_run: Any,
    exact_logits: Any,
    reference: Callable[[str, torch.dtype], Reference],
) -> None:
    """The typical token's error is that of transformers in the same type; in float32 on GPUs, of its TF32 products.

    A factor of three is left for roundings in other places; a wrong mask, scale or position makes tens of it.
    """
    tokens = PROMPTS[-1]
    exact = exact_logits(run.name, tuple(tokens))
    (ours,) = load_run(run, max_batch_size=1).logits([tokens])
    with tf32(allowed=IS_GPU):
        theirs = reference(run.name, getattr(torch, run.activations)).logits(tokens)
    typical = [float(np.median(token_errors(logits, exact))) for logits in (ours, theirs.astype(np.float32))]
    assert typical[0] <= 3 * typical[1]


@pytest.mark.parametrize("run", TEXT_RUNS[:2], ids=str)
def test_long_prompts_at_their_positions(run: Run, load_run: Any, check_errors: Any) -> None:
    """In a run of 4,096 tokens, whose RoPE tables grow."""
    tokens = random_tokens(4000, 1000)
    check_errors(run, tokens, load_run(run, max_batch_size=1, max_length=4096).logits([tokens])[0])
