"""The Mojo kernels: every number of rows, and sizes that fill no vector and no core evenly."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef, Graph, TensorType, Weight, ops
from mojo.run import subprocess_run_mojo

from architectures.layers import kernels
from architectures.layers.linear import matmul
from pipelines import InputError
from pipelines.loading.encoding import ExpertRows
from pipelines.loading.encodings import float32
from pipelines.loading.encodings.bfloat16 import BFloat16

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
    return rounded(rng.standard_normal(shape, np.float32))


def rounded(values: Array) -> Array:
    """Values rounded to bfloat16, to the nearest, halves to even."""
    bits = values.view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def stored(weight: Array, dtype: DType) -> Array | Buffer:
    if dtype == DType.float32:
        return weight
    return Buffer.from_numpy((weight.view(np.uint32) >> 16).astype(np.uint16)).view(dtype, weight.shape)


@pytest.fixture(scope="module")
def products() -> Model:
    """Products of rows with weights of any shape, in float32, in bfloat16, and in float32 by plain loops; and of rows
    that are rounded to bfloat16.
    """
    device, matrix, rounding = DeviceRef.CPU(), float32.RECORD.matrix, BFloat16(DType.bfloat16).matrix
    x = TensorType(DType.float32, ["rows", "in"], device)
    weights = [TensorType(dtype, ["out", "in"], device) for dtype in TYPES]
    with Graph("products", input_types=[x, *weights], custom_extensions=kernels.extensions([device])) as graph:
        rows, w, w_bfloat16 = (value.tensor for value in graph.inputs)
        y = TensorType(DType.float32, ["rows", "out"], device)
        plain = ops.custom("graph_pipelines.reference_matmul", device, [rows, w], [y])[0].tensor
        of_rounded = matmul(rows, rounding(w_bfloat16))
        graph.output(matmul(rows, matrix(w)), matmul(rows, matrix(w_bfloat16)), plain, of_rounded)
    return InferenceSession(devices=[CPU()]).load(graph)


def multiply(model: Model, x: Array, weight: Array) -> list[Array]:
    stored_weights = (stored(weight, dtype) for dtype in TYPES)
    return [y.to_numpy() for y in model.execute(x, *stored_weights)]


def exact_product(x: Array, weight: Array) -> tuple[Array, Array]:
    """The product in float64, and that of the magnitudes."""
    wide_x, wide_weight = x.astype(np.float64), weight.T.astype(np.float64)
    return wide_x @ wide_weight, np.abs(wide_x) @ np.abs(wide_weight)


@pytest.mark.compiles
@pytest.mark.parametrize(("out", "size_in"), SHAPES)
def test_rows_rounded_to_bfloat16_are_multiplied_exactly(products: Model, out: int, size_in: int) -> None:
    """Whatever their number: sums alone are rounded, those of two products at a time as often as those of one."""
    rng = np.random.default_rng(out)
    weight = random_weight(rng, (out, size_in))
    num_roundings = min(size_in, 2 * PIECE + size_in // 4) + 8
    for num_rows in (*range(1, 71), 128, 257, 300, 1100):
        x = rng.standard_normal((num_rows, size_in), np.float32)
        *_, found = multiply(products, x, weight)
        exact, scale = exact_product(rounded(x), weight)
        assert (np.abs(found - exact) <= num_roundings * UNIT * scale).all(), f"{num_rows} rows"


@pytest.mark.compiles
@pytest.mark.parametrize("num_rows", [1, 12, 13, 40])
def test_halves_are_rounded_to_even(products: Model, num_rows: int) -> None:
    """1 + 2 ** -8 lies between two numbers of bfloat16; so does 1 + 3 * 2 ** -8, and what is not a number stays one."""
    x = np.ones((num_rows, 5), np.float32)
    x[0] = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 2**-7]
    x[-1, 0] = np.nan if num_rows > 1 else x[-1, 0]
    *_, found = multiply(products, x, np.eye(5, dtype=np.float32))
    assert found[0].tolist() == [1, 1 + 2**-6, 1 + 2**-7, -1, 2**-7]
    assert num_rows == 1 or np.isnan(found[-1, 0])


@pytest.mark.compiles
@pytest.mark.parametrize(("out", "size_in"), SHAPES)
def test_products_equal_those_of_plain_loops(products: Model, out: int, size_in: int) -> None:
    check_products(products, out, size_in, (*range(1, 71), 128, 257, 300, 1100))


@pytest.mark.compiles
def test_rows_that_l2_does_not_hold_meet_many_outputs(products: Model) -> None:
    """Where there are enough of them for all cores, each takes twice as many outputs at a time."""
    check_products(products, 1537, 3000, (40, 300))


@pytest.mark.compiles
@pytest.mark.parametrize("out", [1000, 1008])
def test_results_that_l2_does_not_hold_are_streamed(products: Model, out: int) -> None:
    """Where rows of the result are whole lines of the caches; of 1,000 every second begins within a line."""
    check_products(products, out, 40, (100, 256, 281, 1030))


def check_products(products: Model, out: int, size_in: int, rows: Iterable[int]) -> None:
    """A sum rounds each of its products at most as often as it adds: along a piece and its vector, then the pieces."""
    rng = np.random.default_rng(out)
    weight = random_weight(rng, (out, size_in))
    num_roundings = min(size_in, PIECE + size_in // 4) + 8
    for num_rows in rows:
        x = rng.standard_normal((num_rows, size_in), np.float32)
        fast, from_bfloat16, plain, _ = multiply(products, x, weight)
        exact, scale = exact_product(x, weight)
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
    fast, *_ = multiply(products, x, weight)
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
        results = [ops.custom(name, device, [x, w, experts], [y])[0].tensor for w in weights]
        rounding = BFloat16(DType.bfloat16)
        graph.output(*results, rounding.expert_matmul(x, rounding.matrix(weights[1]), ExpertRows(num_experts, experts)))
    value = random_weight(rng, (num_experts * out, 37))
    model = InferenceSession(devices=[CPU()]).load(
        graph, weights_registry={dtype.name: stored(value, dtype) for dtype in TYPES}
    )
    for num_tokens, num_chosen in ((1, 1), (1, 3), (40, 2), (9, 5), (120, 4)):
        rows = rng.standard_normal((num_tokens, 37), np.float32)
        chosen = rng.integers(1, num_experts, num_tokens * num_chosen).astype(np.int32)
        by_expert = value.reshape(num_experts, out, 37)[chosen]
        for result, inputs in zip(model.execute(rows, chosen), (rows, rows, rounded(rows)), strict=True):
            exact = np.einsum("ri,roi->ro", np.repeat(inputs, num_chosen, axis=0), by_expert)
            assert np.abs(result.to_numpy() - exact).max() <= 1e-5 * np.abs(exact).max()


TARGETS = {
    "x86-64-v3": ("portable", ()),
    "skylake-avx512": ("portable", ("avx512bw",)),
    "cooperlake": ("avx512-bf16", ("avx512_bf16",)),
}
"""For a CPU what products of bfloat16 are computed with, and what /proc/cpuinfo calls the instructions it needs."""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other CPUs are x86-64")
@pytest.mark.parametrize("cpu", TARGETS)
def test_products_of_bfloat16_on_other_cpus(cpu: str, tmp_path: Path) -> None:
    """Every CPU computes the same values: the portable form is compared where the CPU has instructions of its own."""
    library, instructions, flags = tmp_path / "products.so", *TARGETS[cpu]
    source = Path(__file__).with_name("bfloat16_products.mojo")
    command = ["build", "--emit", "shared-lib", str(source), "-o", str(library), "-I", str(kernels.SOURCES.parent)]
    done = subprocess_run_mojo([*command, "--target-cpu", cpu], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if not set(flags) <= set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip(f"this CPU has no {flags[0]}")
    InferenceSession(devices=[CPU()])  # the library's threads are MAX's
    products, name = ctypes.CDLL(os.fspath(library)), ctypes.create_string_buffer(16)
    products.instructions(name)
    assert name.value.decode() == instructions
    rng = np.random.default_rng(0)
    for out, size_in in SHAPES:
        weight = random_weight(rng, (out, size_in))
        words = (weight.view(np.uint32) >> 16).astype(np.uint16)
        for num_rows in (1, 5, 13, 27, 70):
            x, found = (
                rng.standard_normal((num_rows, size_in), np.float32),
                np.full((num_rows, out), np.nan, np.float32),
            )
            pointers = (ctypes.c_void_p(array.ctypes.data) for array in (found, x, words))
            products.multiply(*pointers, *(ctypes.c_ssize_t(size) for size in (num_rows, out, size_in)))
            exact, scale = exact_product(rounded(x), weight)
            assert (np.abs(found - exact) <= (min(size_in, 2 * PIECE + size_in // 4) + 8) * UNIT * scale).all()


@pytest.mark.slow
def test_the_instructions_of_bfloat16_have_a_name() -> None:
    known = {f"products of bfloat16 with {instructions}" for instructions, _ in TARGETS.values()}
    assert kernels.product_instructions(DType.bfloat16) in known


def test_a_cache_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(file))
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        kernels.kernel_library.__wrapped__()
