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
from architectures.layers.activations import gelu_tanh, soft_cap
from architectures.layers.logits import greedy_choice
from pipelines.engine.step import is_likeliest

pytestmark = pytest.mark.compiles
CAP = 30.0
ULP = 2.0**-24  # half a unit in the last place of 1
Values = npt.NDArray[np.float32]
ZERO: Values = np.zeros(1, np.float32)


@pytest.fixture(scope="module")
def model() -> Model:
    """x [N] -> gelu_tanh, soft_cap; logits [M, V] -> greedy choice."""
    device = DeviceRef.CPU()
    types = [TensorType(DType.float32, shape, device) for shape in (["n"], ["m", "v"])]
    with Graph("activations", input_types=types, custom_extensions=kernels.extensions([device])) as graph:
        x, logits = (value.tensor for value in graph.inputs)
        graph.output(gelu_tanh(x), soft_cap(x, CAP), *greedy_choice(logits))
    return InferenceSession(devices=[CPU()]).load(graph)


def run(model: Model, x: Values = ZERO, logits: Values | None = None) -> list[npt.NDArray[Any]]:
    logits = np.zeros((1, 2), np.float32) if logits is None else logits
    return [output.to_numpy() for output in model.execute(x, logits)]


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
