"""Activations rounded to bfloat16 in products: as transformers with rounded activations, whatever the chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pytest
import torch
from loader import Loader
from reference import TOLERANCE, Reference, random_tokens, relative_difference

MODEL = "qwen3"


@contextmanager
def rounded_activations(model: torch.nn.Module) -> Iterator[None]:
    """Rounds what every matrix is multiplied with."""
    hooks = [
        module.register_forward_pre_hook(lambda _, args: (args[0].bfloat16().float(),))
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    yield
    for hook in hooks:
        hook.remove()


def test_activations_are_rounded_as_transformers_rounds_them(load: Loader, references: Mapping[str, Reference]) -> None:
    """Equal, but where float32's errors decide between two neighbours in bfloat16.

    That happens to about one activation in 10,000, and a token has some 3,000; each changes others after it.
    """
    pipe, reference = load(MODEL, activation_encoding="bfloat16", max_batch_tokens=1024), references[MODEL]
    prompts = [random_tokens(length, reference.vocab_size, seed) for seed in range(10) for length in (1, 13)]
    num_equal = 0
    for tokens, ours in zip(prompts, pipe.logits(prompts), strict=True):
        exact, rounded = both(reference, tokens)
        num_equal += relative_difference(ours, rounded) <= TOLERANCE
        assert relative_difference(ours, exact) > TOLERANCE  # they are rounded
    assert num_equal >= 0.5 * len(prompts)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_rounded_activations_cost_what_their_steps_cost(
    chunk: int, load: Loader, references: Mapping[str, Reference]
) -> None:
    """In the mean over long prompts, however they are cut."""
    pipe, reference = load(MODEL, activation_encoding="bfloat16", max_batch_tokens=chunk), references[MODEL]
    for tokens in (random_tokens(length, reference.vocab_size) for length in (128, 384)):
        (ours,), (exact, rounded) = pipe.logits([tokens]), both(reference, tokens)
        assert deviation(ours, exact) == pytest.approx(deviation(rounded, exact), rel=0.05)


def both(reference: Reference, tokens: list[int]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Logits with exact and with rounded activations."""
    exact = reference.logits(tokens)
    with rounded_activations(reference.model):
        return exact, reference.logits(tokens)


def deviation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean((a - b).astype(np.float64) ** 2)))
