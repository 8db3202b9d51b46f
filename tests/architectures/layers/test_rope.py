"""RoPE tables: every kind of scaling turns as transformers' does, near and far."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from architectures.layers.rope import RopeParameters

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize("head_dim", [64, 128, 512])
@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 8.0},
        {"rope_type": "llama3", **LLAMA3},
        {"rope_type": "llama3", **LLAMA3, "factor": 32.0},
        {"rope_type": "yarn", **YARN},
        {"rope_type": "yarn", **YARN, "attention_factor": 1.5},
        {"rope_type": "yarn", **YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {"rope_type": "yarn", **YARN, "mscale": 0.7, "mscale_all_dim": 1.0},
        {"rope_type": "proportional", "partial_rotary_factor": 0.25},
        {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0},
    ],
    ids=lambda parameters: "-".join(str(value) for value in parameters.values()),
)
def test_frequencies_are_transformers_own(parameters: dict[str, Any], head_dim: int) -> None:
    parameters = {"rope_theta": 500_000.0, **parameters}
    config = Qwen3Config(head_dim=head_dim, rope_parameters=parameters, max_position_embeddings=131072)
    expected, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    rope = RopeParameters.from_huggingface(parameters, "rope_parameters")
    assert rope.attention_factor == pytest.approx(factor)
    np.testing.assert_allclose(rope.frequencies(head_dim), expected.numpy(), rtol=1e-6)
    pairs = rope.table(5000, head_dim).reshape(5000, -1, 2)
    angles = torch.outer(torch.arange(5000.0), expected)
    np.testing.assert_allclose(pairs[..., 0], (angles.cos() * factor).numpy(), atol=2e-3)
    np.testing.assert_allclose(pairs[..., 1], (angles.sin() * factor).numpy(), atol=2e-3)
