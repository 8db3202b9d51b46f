"""The Mojo kernels: every number of rows, and sizes that fill no vector and no core evenly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef, Graph, TensorType, Weight, ops

from architectures.layers import kernels
from architectures.layers.linear import matmul
from pipelines import InputError
from pipelines.loading.encodings import float32

Array = npt.NDArray[Any]
SHAPES = [(1, 1), (3, 16), (5, 40), (7, 77), (130, 96), (97, 300), (13, 1537), (1001, 333)]
"""(out, in) of the weights: fewer rows than a tile has, rests of every kind, several pieces along `in`."""
UNIT = 2.0**-24
"""Relative error of a rounding to float32."""
PIECE = 256
"""Most products that the kernels sum one after the other."""


TYPES = (DType.float32, DType.bfloat16)


def random_weight(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Float32 numbers that bfloat16 has too."""
    bits = rng.standard_normal(shape, np.float32).view(np.uint32) & 0xFFFF0000
    return bits.view(np.float32)


def stored(weight: Array, dtype: DType) -> Array | Buffer:
    if dtype == DType.float32:
        return weight
    return Buffer.from_numpy((weight.view(np.uint32) >> 16).astype(np.uint16)).view(dtype, weight.shape)


@pytest.fixture(scope="module")
def products() -> Model:
    """Products of rows with weights of any shape: in float32, in bfloat16, and in float32 by plain loops."""
    device, matrix = DeviceRef.CPU(), float32.RECORD.matrix
    x = TensorType(DType.float32, ["rows", "in"], device)
    weights = [TensorType(dtype, ["out", "in"], device) for dtype in TYPES]
    with Graph("products", input_types=[x, *weights], custom_extensions=kernels.extensions([device])) as graph:
        rows, w, w_bfloat16 = (value.tensor for value in graph.inputs)
        y = TensorType(DType.float32, ["rows", "out"], device)
        plain = ops.custom("graph_pipelines.reference_matmul", device, [rows, w], [y])[0].tensor
        graph.output(matmul(rows, matrix(w)), matmul(rows, matrix(w_bfloat16)), plain)
    return InferenceSession(devices=[CPU()]).load(graph)


def multiply(model: Model, x: Array, weight: Array) -> list[Array]:
    stored_weights = (stored(weight, dtype) for dtype in TYPES)
    return [y.to_numpy() for y in model.execute(x, *stored_weights)]


@pytest.mark.compiles
@pytest.mark.parametrize(("out", "size_in"), SHAPES)
def test_products_equal_those_of_plain_loops(products: Model, out: int, size_in: int) -> None:
    """A sum rounds each of its products at most as often as it adds: along a piece and its vector, then the pieces."""
    rng = np.random.default_rng(out)
    weight = random_weight(rng, (out, size_in))
    num_roundings = min(size_in, PIECE + size_in // 4) + 8
    for num_rows in (*range(1, 71), 128, 257, 300, 1100):
        x = rng.standard_normal((num_rows, size_in), np.float32)
        fast, from_bfloat16, plain = multiply(products, x, weight)
        exact = x.astype(np.float64) @ weight.T.astype(np.float64)
        scale = np.abs(x).astype(np.float64) @ np.abs(weight.T).astype(np.float64)
        assert np.array_equal(fast, from_bfloat16), f"{num_rows} rows"
        assert (np.abs(fast - exact) <= num_roundings * UNIT * scale).all(), f"{num_rows} rows"
        assert (np.abs(plain - exact) <= 2 * UNIT * np.abs(exact) + UNIT**2 * scale).all(), f"{num_rows} rows"


@pytest.mark.compiles
@pytest.mark.parametrize("num_rows", [2, 20, 40])
def test_long_sums_are_as_exact_as_short_ones(products: Model, num_rows: int) -> None:
    """Roundings are a random walk: step i of a sum is at most UNIT * sqrt(i / 3), n of them UNIT * sqrt(n * n / 6).

    One sum of 12,288 products would err five times as much as sums of pieces.
    """
    rng, size_in = np.random.default_rng(0), 12_288
    x, weight = rng.standard_normal((num_rows, size_in), np.float32), random_weight(rng, (96, size_in))
    fast, _, _ = multiply(products, x, weight)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    error = np.sqrt(np.mean((fast - exact) ** 2) / size_in)
    assert error <= UNIT * np.sqrt((PIECE + size_in / PIECE) / 6)


@pytest.mark.compiles
def test_values_beside_the_rows_are_not_read(products: Model) -> None:
    """What fills vectors up is zeros, not the next row's values: these are infinite here."""
    for num_rows in (1, 6, 33, 61):
        x, weight = np.ones((num_rows, 37), np.float32), np.ones((9, 37), np.float32)
        x[1:], weight[1:] = np.inf, np.inf
        for y in multiply(products, x, weight):
            assert y[0, 0] == 37


@pytest.mark.compiles
def test_rows_are_multiplied_with_the_weights_of_their_experts() -> None:
    """Experts without rows, with one and with many; each row of x may go to several."""
    device, rng, num_experts, out = DeviceRef.CPU(), np.random.default_rng(0), 5, 21
    types = [TensorType(DType.float32, ["tokens", 37], device), TensorType(DType.int32, ["rows"], device)]
    with Graph("experts", input_types=types, custom_extensions=kernels.extensions([device])) as graph:
        x, experts = (value.tensor for value in graph.inputs)
        y = TensorType(DType.float32, [experts.shape[0], out], device)
        weights = [Weight(dtype.name, dtype, (num_experts * out, 37), device) for dtype in TYPES]
        name = "graph_pipelines.expert_matmul"
        graph.output(*(ops.custom(name, device, [x, w, experts], [y])[0].tensor for w in weights))
    value = random_weight(rng, (num_experts * out, 37))
    model = InferenceSession(devices=[CPU()]).load(
        graph, weights_registry={dtype.name: stored(value, dtype) for dtype in TYPES}
    )
    for num_tokens, num_chosen in ((1, 1), (1, 3), (40, 2), (9, 5), (120, 4)):
        rows = rng.standard_normal((num_tokens, 37), np.float32)
        chosen = rng.integers(1, num_experts, num_tokens * num_chosen).astype(np.int32)
        by_expert = value.reshape(num_experts, out, 37)[chosen]
        exact = np.einsum("ri,roi->ro", np.repeat(rows, num_chosen, axis=0), by_expert)
        for result in model.execute(rows, chosen):
            assert np.abs(result.to_numpy() - exact).max() <= 1e-5 * np.abs(exact).max()


def test_a_cache_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(file))
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        kernels.kernel_library.__wrapped__()
