"""GeLU, soft-capping and the greedy choice, beside float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef, Graph, TensorType

from architectures.layers import kernels
from architectures.layers.activations import GATED_KERNELS, gated, gelu_tanh, soft_cap
from architectures.layers.logits import greedy_choice
from pipelines.engine.step import is_likeliest

pytestmark = pytest.mark.compiles
CAP = 30.0
ULP = 2.0**-24  # half a unit in the last place of 1
Values = npt.NDArray[np.float32]
ZERO: Values = np.zeros(1, np.float32)
HALF = 77
"""Width of a gated activation: a rest of every kind of vector."""


@pytest.fixture(scope="module")
def model() -> Model:
    """x [N] -> gelu_tanh, soft_cap; logits [M, V] -> greedy choice; gate and up [T, 2 F] -> gated activations."""
    device = DeviceRef.CPU()
    types = [TensorType(DType.float32, shape, device) for shape in (["n"], ["m", "v"], ["t", 2 * HALF])]
    with Graph("activations", input_types=types, custom_extensions=kernels.extensions([device])) as graph:
        x, logits, gate_up = (value.tensor for value in graph.inputs)
        fused = (gated(gate_up, name) for name in GATED_KERNELS)
        graph.output(gelu_tanh(x), soft_cap(x, CAP), *greedy_choice(logits), *fused)
    return InferenceSession(devices=[CPU()]).load(graph)


def run(
    model: Model, x: Values = ZERO, logits: Values | None = None, gate_up: Values | None = None
) -> list[npt.NDArray[Any]]:
    logits = np.zeros((1, 2), np.float32) if logits is None else logits
    gate_up = np.zeros((1, 2 * HALF), np.float32) if gate_up is None else gate_up
    return [output.to_numpy() for output in model.execute(x, logits, gate_up)]


def test_gelu_is_as_exact_as_its_argument_allows(model: Model) -> None:
    """x sigmoid(2 u): a rounding of u, a sum of three roundings, is multiplied by 2 u in the exponential."""
    x = np.random.default_rng(0).normal(0, 2, 100_000).astype(np.float32)
    exact = x.astype(np.float64)
    twice_u = 2 * np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)
    expected = exact / (1 + np.exp(-twice_u))
    error = np.abs(run(model, x)[0] - expected)
    assert (error <= (6 + 6 * np.abs(twice_u)) * ULP * np.abs(expected)).all()
    torchs = torch.nn.functional.gelu(torch.from_numpy(x), approximate="tanh").numpy()
    mean, torchs_mean = (float((e / np.abs(expected)).mean()) for e in (error, np.abs(torchs - expected)))
    assert mean < torchs_mean


@pytest.mark.parametrize("num_rows", [1, 3, 300])
def test_gated_activations_are_as_exact_as_the_exponential(model: Model, num_rows: int) -> None:
    """Gate / (1 + exp(-z)) * up, z with at most six roundings, each of which the exponential multiplies by z."""
    gate_up = np.random.default_rng(0).normal(0, 3, (num_rows, 2 * HALF)).astype(np.float32)
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
    arguments = (2 * np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3), gate)
    assert GATED_KERNELS == ("gelu_pytorch_tanh", "silu")
    for found, z in zip(run(model, gate_up=gate_up)[4:], arguments, strict=True):
        expected = gate / (1 + np.exp(-z)) * up
        largest_exp = 2.0**127  # an activation smaller than its gate by more is as good as zero
        bound = (10 + 6 * np.abs(z)) * ULP * np.abs(expected) + np.abs(gate * up) / largest_exp
        assert (np.abs(found - expected) <= bound).all()


def test_gated_activations_of_what_is_not_finite(model: Model) -> None:
    gate_up = np.full((1, 2 * HALF), 2, np.float32)
    gate_up[0, [0, 1, 2, HALF + 3]] = np.nan, -np.inf, np.inf, np.nan
    for found in run(model, gate_up=gate_up)[4:]:
        assert not np.isfinite(found[0, :4]).any()
        assert np.isfinite(found[0, 4:]).all()


def test_soft_capping_errs_by_the_roundings_of_its_result_alone(model: Model) -> None:
    """cap (2 sigmoid - 1): the sigmoid is below 1 and errs by few units of 1, which are multiplied by 2 cap."""
    x = np.random.default_rng(1).normal(0, 40, 100_000).astype(np.float32)
    expected = CAP * np.tanh(x.astype(np.float64) / CAP)
    assert np.abs(run(model, x)[1] - expected).max() <= 4 * 2 * CAP * ULP


def test_a_position_without_a_likeliest_token_shows_in_its_logit(model: Model) -> None:
    rows = np.random.default_rng(2).normal(size=(7, 1000)).astype(np.float32)
    rows[1, 500], rows[2, 999], rows[3, 0] = np.nan, np.inf, -np.inf
    rows[4], rows[5] = -np.inf, np.nan
    rows[6, 10:] = rows[6, 10]
    tokens, largest = run(model, logits=rows)[2:4]
    assert [is_likeliest(logit) for logit in largest] == [True, False, False, True, False, False, True]
    fine = [0, 3, 6]
    assert np.array_equal(largest[fine], rows[fine].max(axis=1))
    assert tokens[fine].tolist() == rows[fine].argmax(axis=1).tolist()  # of equals the first
