"""RoPE tables: bit for bit transformers' frequencies, and its cosines and sines up to the longest published context."""

from __future__ import annotations

import json
from decimal import Decimal, localcontext
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from marks import slow
from published import FOLDERS
from transformers import Qwen3Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRotaryEmbedding

from architectures.layers import rope as rope_module
from architectures.layers.rope import RopeParameters

Float32s = npt.NDArray[np.float32]

HEAD_DIMS = (64, 128, 256, 512)
THETAS = (10_000.0, 500_000.0, 1_000_000.0, 5_000_000.0)
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 8.0},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "llama3", **LLAMA3},
    {"rope_type": "llama3", **LLAMA3, "factor": 32.0},
    {"rope_type": "yarn", **YARN},
    {"rope_type": "yarn", **YARN, "attention_factor": 1.5},
    {"rope_type": "yarn", **YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    {"rope_type": "yarn", **YARN, "mscale": 0.7, "mscale_all_dim": 1.0},
    {"rope_type": "yarn", **YARN, "beta_fast": 1.0, "truncate": False},
    {"rope_type": "proportional", "partial_rotary_factor": 0.25},
    {"rope_type": "proportional", "partial_rotary_factor": 0.3},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 3.0},
]
every_scaling = pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: "-".join(str(v) for v in s.values()))
every_head_dim = pytest.mark.parametrize("head_dim", HEAD_DIMS)

MAX_WRONG_POWERS = 4
"""Powers in a table of up to 256 that torch (with AVX-512) does not round to the float32 nearest to the exact one."""
COSINE_ERROR = 4 * 2.0**-24
"""Cosines of one float32 angle: torch's are within 3.5 units in the last place of the exact one (SLEEF's documented
bound), ours within half a unit; the unit of a number under 1 is 2**-24 or less."""


@every_scaling
@every_head_dim
@pytest.mark.parametrize("theta", THETAS)
def test_every_rounding_of_the_frequencies_is_transformers_own(
    scaling: dict[str, Any], head_dim: int, theta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given torch's powers, all bits are equal."""
    rope, reference = _both({"rope_theta": theta, **scaling}, head_dim)
    assert rope.attention_factor == reference.attention_scaling
    monkeypatch.setattr(rope_module, "_periods", lambda theta, head_dim: _torch_periods(rope, head_dim))
    np.testing.assert_array_equal(rope.frequencies(head_dim), reference.inv_freq.numpy())


@every_head_dim
@pytest.mark.parametrize("theta", THETAS)
def test_powers_are_rounded_correctly_and_a_few_of_torchs_are_not(head_dim: int, theta: float) -> None:
    rope = RopeParameters(theta, "default", {})
    ours, torchs = rope_module._periods(theta, head_dim), _torch_periods(rope, head_dim)
    np.testing.assert_array_equal(ours, _exact_periods(theta, head_dim))
    steps = np.abs(ours.view(np.int32) - torchs.view(np.int32))
    assert steps.max() <= 1
    assert np.count_nonzero(steps) <= MAX_WRONG_POWERS


@every_scaling
@every_head_dim
@pytest.mark.parametrize("theta", THETAS)
def test_frequencies_are_equal_wherever_torchs_power_is_rounded_correctly(
    scaling: dict[str, Any], head_dim: int, theta: float
) -> None:
    rope, reference = _both({"rope_theta": theta, **scaling}, head_dim)
    ours, theirs = rope.frequencies(head_dim), reference.inv_freq.numpy()
    is_correct = _torch_periods(rope, head_dim) == _exact_periods(theta, head_dim)
    np.testing.assert_array_equal(ours[is_correct], theirs[is_correct])
    # One unit of a power is 2**-23 of it, or less; roundings that follow may add as much.
    np.testing.assert_allclose(ours[~is_correct], theirs[~is_correct], rtol=2.0**-22)


@every_scaling
@pytest.mark.parametrize("head_dim", [HEAD_DIMS[0], *slow(*HEAD_DIMS[1:])])
def test_cosines_and_sines_are_transformers_up_to_the_longest_published_context(
    scaling: dict[str, Any], head_dim: int
) -> None:
    """A power that torch rounds wrongly adds its share of the angle, and a rounding of each of the two angles."""
    rope, reference = _both({"rope_theta": 1_000_000.0, **scaling}, head_dim)
    ours, theirs = rope.frequencies(head_dim), reference.inv_freq.numpy()
    is_wrong = _torch_periods(rope, head_dim) != _exact_periods(rope.theta, head_dim)
    frequency_error = np.where(is_wrong, np.abs(np.float64(ours) - theirs), 0)
    factor = rope.attention_factor
    for end in (1024, 32_768, 131_072, _longest_context()):
        positions = np.arange(end - 1024, end)
        roundings = np.where(is_wrong, np.spacing(np.outer(positions, theirs).astype(np.float32)), 0)
        angle_error = np.outer(positions, frequency_error) + roundings
        # Two products with the factor, each rounded: together one unit in the last place of the product.
        bound = (COSINE_ERROR + angle_error) * factor + (0 if factor == 1 else np.spacing(np.float32(factor)))
        pairs = rope.table(end, head_dim, first_position=end - 1024).reshape(1024, -1, 2)
        expected = reference(torch.zeros(1), torch.from_numpy(positions)[None])
        for part, theirs_of_part in zip(np.moveaxis(pairs, -1, 0), expected, strict=True):
            difference = np.abs(np.float64(part) - theirs_of_part[0, :, : head_dim // 2].numpy())
            assert (difference <= bound).all(), f"{difference.max()} before position {end}"


@every_head_dim
def test_default_frequencies_are_the_same_in_all_models(head_dim: int) -> None:
    config = Qwen3Config(head_dim=head_dim, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    expected = Qwen3RotaryEmbedding.compute_default_rope_parameters(config)[0]
    for model in (LlamaRotaryEmbedding, Qwen3MoeRotaryEmbedding):
        assert torch.equal(model.compute_default_rope_parameters(config)[0], expected)
    config.rope_parameters = {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}
    for model in (Gemma3RotaryEmbedding, Gemma4TextRotaryEmbedding):
        assert torch.equal(model.compute_default_rope_parameters(config, layer_type="full_attention")[0], expected)


@every_scaling
@every_head_dim
def test_a_table_made_by_parts_is_the_table(scaling: dict[str, Any], head_dim: int) -> None:
    rope = RopeParameters.from_huggingface({"rope_theta": 10_000.0, **scaling}, "rope_parameters")
    whole = rope.table(1000, head_dim)
    borders = (0, 1, 18, 127, 640, 1000, 1000)
    parts = [rope.table(end, head_dim, first_position=start) for start, end in pairwise(borders)]
    assert [len(part) for part in parts] == list(np.diff(borders))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def _both(parameters: dict[str, Any], head_dim: int) -> tuple[RopeParameters, Any]:
    """Our parameters, and the module that computes cosines and sines in transformers' models."""
    config = Qwen3Config(head_dim=head_dim, rope_parameters=parameters, max_position_embeddings=_longest_context())
    return RopeParameters.from_huggingface(parameters, "rope_parameters"), Qwen3RotaryEmbedding(config)


def _torch_periods(rope: RopeParameters, head_dim: int) -> Float32s:
    """[head_dim / 2]: powers by torch, whose results depend on how many it computes at once."""
    num_computed = head_dim // 2
    if rope.rope_type == "proportional":
        num_computed = int(rope.options["partial_rotary_factor"] * head_dim // 2)
    exponents = torch.arange(0, 2 * num_computed, 2, dtype=torch.float) / head_dim
    periods = _exact_periods(rope.theta, head_dim).copy()
    periods[:num_computed] = (rope.theta**exponents).numpy()
    return periods


@cache
def _exact_periods(theta: float, head_dim: int) -> Float32s:
    """[head_dim / 2]: the float32 numbers nearest to the powers."""
    with localcontext() as context:
        context.prec = 40
        logarithm = Decimal(theta).ln()
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        powers = [(Decimal(float(exponent)) * logarithm).exp() for exponent in exponents]
        return np.array([_nearest(power) for power in powers], np.float32)


def _nearest(exact: Decimal) -> np.float32:
    """The float32 nearest to a number."""
    guess = np.float32(float(exact))
    candidates = (np.nextafter(guess, np.float32(0)), guess, np.nextafter(guess, np.float32(np.inf)))
    return min(candidates, key=lambda candidate: abs(Decimal(float(candidate)) - exact))


@cache
def _longest_context() -> int:
    configs = [json.loads((folder / "config.json").read_text()) for folder in FOLDERS.values()]
    return max(config.get("text_config", config).get("max_position_embeddings", 0) for config in configs)
