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
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType, Weight, ops

from architectures.layers import kernels
from architectures.layers.linear import matmul
from pipelines import InputError
from pipelines.loading.encodings import float32

Array = npt.NDArray[Any]
SHAPES = [(1, 1), (3, 16), (7, 77), (130, 96), (1001, 333)]
"""(out, in) of the weights."""


TYPES = (DType.float32, DType.bfloat16)


def random_weight(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Float32 numbers that bfloat16 has too."""
    bits = rng.standard_normal(shape, np.float32).view(np.uint32) & 0xFFFF0000
    return bits.view(np.float32)


def stored(weight: Array, dtype: DType) -> Array | Buffer:
    if dtype == DType.float32:
        return weight
    return Buffer.from_numpy((weight.view(np.uint32) >> 16).astype(np.uint16)).view(dtype, weight.shape)


@pytest.mark.compiles
def test_the_product_of_few_and_many_rows_equals_numpys() -> None:
    device, rng = DeviceRef.CPU(), np.random.default_rng(0)
    cases = [(shape, dtype) for shape in SHAPES for dtype in TYPES]
    types = [TensorType(DType.float32, ["rows", size_in], device) for (_, size_in), _ in cases]
    with Graph("products", input_types=types, custom_extensions=kernels.extensions([device])) as graph:
        weights = [Weight(f"w{i}", dtype, shape, device) for i, (shape, dtype) in enumerate(cases)]
        matrices = [float32.RECORD.matrix(w) for w in weights]
        graph.output(*(matmul(x.tensor, w) for x, w in zip(graph.inputs, matrices, strict=True)))
    values = [random_weight(rng, shape) for shape, _ in cases]
    registry = {f"w{i}": stored(value, dtype) for i, (value, (_, dtype)) in enumerate(zip(values, cases, strict=True))}
    model = InferenceSession(devices=[CPU()]).load(graph, weights_registry=registry)
    for num_rows in (1, 2, 3, 4, 5, 17, 33, 700):
        inputs = [rng.standard_normal((num_rows, size_in), np.float32) for (_, size_in), _ in cases]
        for x, weight, y in zip(inputs, values, model.execute(*inputs), strict=True):
            exact = x.astype(np.float64) @ weight.T.astype(np.float64)
            assert np.abs(y.to_numpy() - exact).max() <= 1e-5 * np.abs(exact).max(), f"{num_rows} x {weight.shape}"


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
    for num_tokens, num_chosen in ((1, 1), (1, 3), (40, 2), (9, 5)):
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
