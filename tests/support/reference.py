"""The truth that tests compare with: transformers, in float32, with eager attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4
"""Tolerance as a fraction of the largest logit."""


class Reference:
    """A checkpoint in transformers."""

    def __init__(self, path: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        self.vocab_size = self.model.config.get_text_config().vocab_size

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """[T, V]"""
        return self.model(torch.tensor([tokens])).logits[0].float().numpy()

    @torch.inference_mode()
    def greedy(self, tokens: list[int], num_new: int) -> list[int]:
        """The next `num_new` tokens, end-of-text tokens being like any other."""
        output = self.model.generate(
            torch.tensor([tokens]), max_new_tokens=num_new, min_new_tokens=num_new, do_sample=False
        )
        return output[0, len(tokens) :].tolist()


def relative_difference(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """max |difference| over max |logit|."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def random_tokens(length: int, vocab_size: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([seed, length]).integers(10, vocab_size, length).tolist()
