"""Activations rounded to bfloat16 in products: near transformers with rounded activations, whatever the chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pytest
import torch
from loader import Loader
from reference import TOLERANCE, Reference, random_tokens

MODEL = "qwen3"
LENGTHS = (1, 12, 13, 128, 384)


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


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_activations_are_rounded_as_transformers_rounds_them(
    chunk: int, load: Loader, references: Mapping[str, Reference]
) -> None:
    """But where float32's errors decide between two neighbours, which then are half a step of bfloat16 off each.

    A tenth of what all roundings cost: what the matrices of one kind that rounded nothing, of seven, would be off is a
    third of it.
    """
    pipe, reference = load(MODEL, activation_encoding="bfloat16", max_batch_tokens=chunk), references[MODEL]
    prompts = [random_tokens(length, reference.vocab_size) for length in LENGTHS]
    for tokens, ours in zip(prompts, pipe.logits(prompts), strict=True):
        exact = reference.logits(tokens)
        with rounded_activations(reference.model):
            rounded = reference.logits(tokens)
        cost = deviation(rounded, exact)
        assert cost > TOLERANCE * np.abs(exact).max() / 10
        assert deviation(ours, rounded) <= 0.1 * cost, f"{len(tokens)} tokens"


def deviation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean((a - b).astype(np.float64) ** 2)))
