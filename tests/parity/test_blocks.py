"""Weights in blocks: equal to transformers on the dequantized weights, and near it with int8 activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from block_models import rounded_to_int8
from loader import Loader
from reference import TOLERANCE, Reference, random_tokens, relative_difference

from pipelines import SamplingParams

LENGTHS = (1, 7, 33, 127, 128, 129, 384)
MODEL = "qwen3_gguf"


@pytest.mark.parametrize("chunk", [7, 128, 1024])
def test_logits_equal_transformers_on_the_dequantized_weights(
    chunk: int, load: Loader, references: Mapping[str, Reference]
) -> None:
    pipe, reference = load(MODEL, activation_encoding="float32", max_batch_tokens=chunk), references[MODEL]
    prompts = [random_tokens(length, reference.vocab_size) for length in LENGTHS]
    for tokens, ours in zip(prompts, pipe.logits(prompts), strict=True):
        assert relative_difference(ours, reference.logits(tokens)) <= TOLERANCE, f"{len(tokens)} tokens"


def test_greedy_tokens_equal_transformers(load: Loader, references: Mapping[str, Reference]) -> None:
    pipe, reference = load(MODEL, activation_encoding="float32", max_batch_tokens=128), references[MODEL]
    prompts = [random_tokens(length, reference.vocab_size, seed=1) for length in (5, 120, 200)]
    outputs = pipe.generate(prompts, SamplingParams(max_new_tokens=40, ignore_eos=True))
    assert [output.tokens for output in outputs] == [reference.greedy(prompt, 40) for prompt in prompts]


@contextmanager
def int8_activations(model: torch.nn.Module) -> Iterator[None]:
    """Rounds what every matrix in blocks is multiplied with; those of the file in other types see it as it is."""
    floats = {f"layers.2.{part}_proj" for part in ("self_attn.k", "self_attn.v", "self_attn.o", "mlp.down")}

    def round_input(_: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (rounded_to_int8(args[0]),)

    hooks = [
        module.register_forward_pre_hook(round_input)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.removeprefix("model.") not in floats
    ]
    yield
    for hook in hooks:
        hook.remove()


def test_int8_activations_are_rounded_by_groups_and_summed_exactly(
    load: Loader, references: Mapping[str, Reference]
) -> None:
    """Equal to transformers with rounded activations, but where float32's errors decide between two steps of int8.

    That happens to about one activation in 100,000, and seven tokens have some 50,000.
    """
    pipe, reference = load(MODEL, max_batch_tokens=1024, kv_cache_dtype="float32"), references[MODEL]
    prompts = [random_tokens(length, reference.vocab_size, seed) for seed in range(10) for length in (1, 7)]
    num_equal = 0
    for tokens, ours in zip(prompts, pipe.logits(prompts), strict=True):
        with int8_activations(reference.model):
            num_equal += relative_difference(ours, reference.logits(tokens)) <= TOLERANCE
        assert relative_difference(ours, reference.logits(tokens)) > TOLERANCE  # they are rounded
    assert num_equal >= 0.7 * len(prompts)


@pytest.mark.parametrize("chunk", [7, 128, 1024])
def test_int8_activations_cost_what_their_steps_cost(
    chunk: int, load: Loader, references: Mapping[str, Reference]
) -> None:
    """In the mean over long prompts, where the step that one activation takes makes no difference."""
    pipe, reference = load(MODEL, max_batch_tokens=chunk), references[MODEL]
    for tokens in (random_tokens(length, reference.vocab_size) for length in (128, 384)):
        (ours,), exact = pipe.logits([tokens]), reference.logits(tokens)
        with int8_activations(reference.model):
            rounded = reference.logits(tokens)
        assert np.abs(ours - exact).mean() == pytest.approx(np.abs(rounded - exact).mean(), rel=0.05)
