"""The Mojo kernels: every number of rows, and sizes that fill no vector and no core evenly."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType, Weight

from architectures.layers import kernels
from architectures.layers.linear import matmul
from pipelines import InputError

SHAPES = [(1, 1), (3, 16), (7, 77), (130, 96), (1001, 333)]
"""(out, in) of the weights."""


def test_the_product_of_few_and_many_rows_equals_numpys() -> None:
    device, rng = DeviceRef.CPU(), np.random.default_rng(0)
    types = [TensorType(DType.float32, ["rows", size_in], device) for _, size_in in SHAPES]
    with Graph("products", input_types=types, custom_extensions=kernels.extensions([device])) as graph:
        weights = [Weight(f"w{i}", DType.float32, shape, device) for i, shape in enumerate(SHAPES)]
        graph.output(*(matmul(x.tensor, w) for x, w in zip(graph.inputs, weights, strict=True)))
    values = {f"w{i}": rng.standard_normal(shape, np.float32) for i, shape in enumerate(SHAPES)}
    model = InferenceSession(devices=[CPU()]).load(graph, weights_registry=values)
    for num_rows in (1, 2, 3, 4, 5, 33):
        inputs = [rng.standard_normal((num_rows, size_in), np.float32) for _, size_in in SHAPES]
        for x, weight, y in zip(inputs, values.values(), model.execute(*inputs), strict=True):
            exact = x.astype(np.float64) @ weight.T.astype(np.float64)
            assert np.abs(y.to_numpy() - exact).max() <= 1e-5 * np.abs(exact).max(), f"{num_rows} x {weight.shape}"


def test_a_cache_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(file))
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        kernels.kernel_library.__wrapped__()
