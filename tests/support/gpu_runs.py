"""Runs of the tests in tests/gpu: the devices they are on, and how far their results may be from exact ones.

Shape suffixes: T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from pipelines.loading.encodings import encoding

DEVICES_VARIABLE = "GRAPH_PIPELINES_TEST_DEVICES"
DEVICES = os.environ.get(DEVICES_VARIABLE, "gpu")
"""As in PipelineConfig.devices; cpu proves the tests themselves where there is no GPU."""
IS_GPU = DEVICES != "cpu"

ROUNDINGS_PER_LAYER = 16
"""Of the residual stream's way through a layer: norms, products, QK-norm, RoPE, probabilities, activation, sums."""
AMPLIFICATION = 4
"""What scores and norms may make of the errors that reach them, and by how much one token may exceed the mean."""
UNITS = {
    ("gpu", "bfloat16"): 2.0**-9,
    ("gpu", "float32"): 2.0**-10,  # TF32: MAX's products of several rows use tensor cores, which may drop 13 bits
    ("cpu", "float32"): 2.0**-20,  # of sums of some hundreds of products in float32
}
"""Relative error of one rounding, by device kind and type of activations."""
FLOAT8_UNIT = 2.0**-4 / math.sqrt(3)
"""Mean error of an activation in float8, which has four bits; their errors in a product are independent."""
FLOAT8_PRODUCTS_PER_LAYER = 4
PEAK = 6
"""By how much the error of one logit of thousands may exceed their root mean square."""


@dataclass(frozen=True)
class Run:
    """One of gpu_models.py in one encoding. has_experts: a rounding error may lead a token to another expert."""

    name: str
    encoding: str

    def __str__(self) -> str:
        return f"{self.name}-{self.encoding}"

    @property
    def has_experts(self) -> bool:
        return "moe" in self.name

    @property
    def is_float8(self) -> bool:
        return IS_GPU and encoding(self.encoding).needs_quantized_checkpoint

    @property
    def activations(self) -> str:
        """Type of the activations."""
        kind = "gpu" if IS_GPU else "cpu"
        return str(encoding(self.encoding).activation_dtypes[kind].name)

    def bound(self, num_layers: int) -> float:
        """Largest relative error of the logits of a token: independent errors add up as their squares do."""
        unit = UNITS["gpu" if IS_GPU else "cpu", self.activations]
        bound = AMPLIFICATION * math.sqrt(ROUNDINGS_PER_LAYER * num_layers) * unit
        if self.is_float8:
            bound += 2 * math.sqrt(FLOAT8_PRODUCTS_PER_LAYER * num_layers) * FLOAT8_UNIT
        return bound


TEXT_RUNS = [
    Run("qwen3", "bfloat16"),
    Run("gemma3", "bfloat16"),
    Run("qwen3_fp8", "float8_e4m3fn"),
    Run("qwen3_moe", "bfloat16"),
    Run("gemma4", "bfloat16"),
    Run("llama3", "bfloat16"),
    Run("qwen3_moe_fp8", "float8_e4m3fn"),
    Run("qwen3", "float32"),
    Run("gemma3", "float32"),
]
"""The most telling first: a command on a lent GPU is cut after minutes."""


class Reference:
    """A checkpoint in transformers, with eager attention, in one type on the device of the tests."""

    def __init__(self, path: str, dtype: torch.dtype, model_class: type = AutoModelForCausalLM) -> None:
        device = "cuda" if IS_GPU else "cpu"
        eager = {"attn_implementation": "eager", "experts_implementation": "eager"}  # other experts have no float64
        self.model = model_class.from_pretrained(path, dtype=dtype, **eager).eval().to(device)  # type: ignore[attr-defined]
        self.config = self.model.config.get_text_config()

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> npt.NDArray[np.float64]:
        """[T, V]"""
        inputs = torch.tensor([tokens], device=self.model.device)
        return self.model(inputs, use_cache=False).logits[0].double().cpu().numpy()


def token_errors(ours_TV: npt.NDArray[np.float32], exact_TV: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Relative error of each token's logits, [T]: the length of the difference over that of the exact row."""
    assert ours_TV.shape == exact_TV.shape
    assert np.isfinite(ours_TV).all()
    return np.linalg.norm(ours_TV - exact_TV, axis=-1) / np.linalg.norm(exact_TV, axis=-1)


def regrets(tokens: list[int], exact_TV: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How much less than the likeliest each of these tokens has, in units of its row's root mean square, [T]."""
    chosen = exact_TV[np.arange(len(tokens)), tokens]
    return (exact_TV.max(axis=-1) - chosen) / np.sqrt(np.square(exact_TV).mean(axis=-1))


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Lets torch's float32 products on a GPU use TF32, or not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    yield
    torch.set_float32_matmul_precision(before)
