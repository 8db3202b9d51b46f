"""The Mojo kernels for blocks of quantized weights: every number of rows, tails of every kind, extreme blocks."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef, Graph, TensorType, TensorValue, ops
from mojo.run import subprocess_run_mojo

from architectures.layers import kernels

Array = npt.NDArray[Any]
UNIT = 2.0**-24
"""Relative error of a rounding to float32."""
GROUP = 32
"""Activations that share a scale."""
TINY = np.float32(2.0**-100)
"""Groups of smaller activations are zeros."""
PIECE = 256
"""Most products that the kernels sum one after the other."""
SCALES = {
    "q8_0": ((0,), ()),
    "q4_0": ((0,), ()),
    "q4_1": ((0,), (2,)),
    "q5_0": ((0,), ()),
    "q5_1": ((0,), (2,)),
    "q4_k": ((0,), (2,)),
    "q5_k": ((0,), (2,)),
    "q6_k": ((208,), ()),
}
"""Where a block has its float16 scale, and its minimum if it has one."""
NUM_ROWS = (*range(1, 41), 64, 70, 128, 257, 300)
NUM_OUTPUTS = (1, 3, 16, 97)
NUM_BLOCKS = {32: (1, 3, 5, 36, 79), 256: (1, 2, 5, 11)}
"""Blocks of a row: fewer than a kernel unpacks at a time, rests of every kind, several pieces."""


@dataclass(frozen=True)
class Products:
    """The results of one format for x [rows, in] and w [out, in]: products, and rows of w."""

    int8: Array
    float32: Array
    plain: Array
    rows: Array


def block_size(name: str) -> int:
    return GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]][0]


def block_bytes(name: str) -> int:
    return GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]][1]


def dequantized(name: str, w: Array) -> Array:
    return np.asarray(dequantize(w, GGMLQuantizationType[name.upper()]))


def put_float16(w: Array, name: str, places: tuple[int, ...], values: Array) -> None:
    """Stores a number into these places of each block of w [out, bytes]."""
    blocks = w.reshape(w.shape[0], -1, block_bytes(name))
    for place in places:
        blocks[..., place : place + 2] = values.astype(np.float16)[..., None].view(np.uint8)


def random_blocks(rng: np.random.Generator, name: str, out: int, size_in: int) -> Array:
    """All values of the integers, scales of both signs; minima too."""
    num_blocks = size_in // block_size(name)
    w = rng.integers(0, 256, (out, num_blocks * block_bytes(name)), np.uint8)
    for places in SCALES[name]:
        put_float16(w, name, places, rng.uniform(0.01, 0.1, (out, num_blocks)) * rng.choice([-1, 1], (out, num_blocks)))
    return w


def quantized(x: Array) -> tuple[Array, Array]:
    """Integers [rows, groups, 32] and scales [rows, groups, 1] of the activations, as the kernels compute them."""
    groups = x.reshape(x.shape[0], -1, GROUP)
    greatest = np.abs(groups).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        factor = np.where(greatest >= TINY, np.float32(127) / greatest, np.float32(0))
    return np.rint(groups * factor).astype(np.int64), greatest / np.float32(127)


@pytest.fixture(scope="module")
def model() -> Model:
    """All products of all formats; formats with blocks of one size share x."""
    device = DeviceRef.CPU()
    types = {f"x{size}": TensorType(DType.float32, ["rows", f"in{size}"], device) for size in NUM_BLOCKS}
    types |= {name: TensorType(DType.uint8, ["out", f"{name}_bytes"], device) for name in SCALES}
    types["numbers"] = TensorType(DType.int64, ["numbers"], device)
    libraries = kernels.extensions([device])
    with Graph("block_products", input_types=list(types.values()), custom_extensions=libraries) as graph:
        inputs = dict(zip(types, (value.tensor for value in graph.inputs), strict=True))
        graph.output(*(y for name in SCALES for y in products_of(name, inputs)))
    return InferenceSession(devices=[CPU()]).load(graph)


def products_of(name: str, inputs: dict[str, TensorValue]) -> list[TensorValue]:
    x, w, numbers = inputs[f"x{block_size(name)}"], inputs[name], inputs["numbers"]
    y = TensorType(DType.float32, [x.shape[0], w.shape[0]], x.device)
    rows = TensorType(DType.float32, [numbers.shape[0], x.shape[1]], x.device)
    calls: list[tuple[str, list[TensorValue], TensorType, dict[str, bool]]] = [
        ("block_matmul", [x, w], y, {"int8_activations": True}),
        ("block_matmul", [x, w], y, {"int8_activations": False}),
        ("reference_block_matmul", [x, w], y, {}),
        ("block_gather", [w, numbers], rows, {}),
    ]
    return [
        ops.custom(f"graph_pipelines.{op}", x.device, values, [result], parameters={"format": name, **more})[0].tensor
        for op, values, result, more in calls
    ]


def multiply(model: Model, xs: dict[int, Array], weights: dict[str, Array], numbers: Array) -> dict[str, Products]:
    results = iter([y.to_numpy() for y in model.execute(*xs.values(), *weights.values(), numbers)])
    return {name: Products(next(results), next(results), next(results), next(results)) for name in weights}


def check(name: str, x: Array, w: Array, products: Products) -> None:
    """Compares with float64, within what the roundings of the kernels' sums can give.

    The float kernels round a weight once (q6_k, and the difference of scale * value and a minimum), the sum of a piece
    and its vector, then of the pieces, at most as often as they add; for a few rows the sum of a group, then of the
    groups, which is less. The int8 kernels' sums of groups are exact; each is multiplied by two scales and added,
    and so is the minimum of a group times the sum of its activations.
    """
    weight = dequantized(name, w)
    parts = magnitudes(name, w, weight)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    num_roundings = min(x.shape[1], PIECE + x.shape[1] // 4) + 10
    scale = np.abs(x).astype(np.float64) @ parts.T
    assert (np.abs(products.float32 - exact) <= num_roundings * UNIT * scale).all(), name
    assert (np.abs(products.plain - exact) <= 2 * UNIT * np.abs(exact) + UNIT**2 * scale).all(), name
    integers, scales = quantized(x)
    rounded = (integers * scales.astype(np.float64)).reshape(x.shape)
    exact = rounded @ weight.T.astype(np.float64)
    num_roundings = 2 * (x.shape[1] // GROUP) + 8
    assert (np.abs(products.int8 - exact) <= num_roundings * UNIT * (np.abs(rounded) @ parts.T)).all(), name


def magnitudes(name: str, w: Array, weight: Array) -> Array:
    """Of the weights or, where they are scale * value - minimum, which kernels add apart, at least of both parts."""
    result = np.abs(weight).astype(np.float64)
    if not SCALES[name][1]:
        return result
    zeros = w.copy().reshape(w.shape[0], -1, block_bytes(name))
    zeros[..., 16 if name.endswith("k") else 4 :] = 0  # values of zero leave the minima
    return result + 2 * np.abs(dequantized(name, zeros.reshape(w.shape)))


@pytest.mark.compiles
@pytest.mark.parametrize("out", NUM_OUTPUTS)
@pytest.mark.parametrize("round_", range(4))
def test_products_equal_those_of_exact_arithmetic(model: Model, out: int, round_: int) -> None:
    sizes = {size: size * counts[round_ % len(counts)] for size, counts in NUM_BLOCKS.items()}
    check_products(model, np.random.default_rng([out, round_]), out, sizes, NUM_ROWS)


@pytest.mark.compiles
@pytest.mark.parametrize("out", [1537, 1552])
def test_rows_that_l2_does_not_hold_meet_many_outputs(model: Model, out: int) -> None:
    """Where there are enough of them for all cores, each takes twice as many outputs at a time.

    Rows of 1,552 results are whole lines of the caches, and are streamed.
    """
    check_products(model, np.random.default_rng(0), out, dict.fromkeys(NUM_BLOCKS, 3072), (160,))


def check_products(
    model: Model, rng: np.random.Generator, out: int, sizes: dict[int, int], rows: Iterable[int]
) -> None:
    """Multiplies random rows with random blocks; `sizes` are the inputs for formats with blocks of each size."""
    weights = {name: random_blocks(rng, name, out, sizes[block_size(name)]) for name in SCALES}
    for num_rows in rows:
        xs = {size: rng.standard_normal((num_rows, sizes[size]), np.float32) for size in sizes}
        for name, products in multiply(model, xs, weights, np.zeros(1, np.int64)).items():
            check(name, xs[block_size(name)], weights[name], products)


@pytest.mark.compiles
@pytest.mark.parametrize("num_rows", [1, 3, 8, 12, 40])
def test_extreme_blocks_and_activations(model: Model, num_rows: int) -> None:
    """Scales of zero, subnormal and huge ones; the least and the greatest integers; rows of zeros, of signs, with a
    value that leaves nothing of its group, and groups too small to have a scale.
    """
    rng, sizes = np.random.default_rng(num_rows), {32: 7 * 32, 256: 3 * 256}
    weights = {name: extreme_blocks(rng, name, sizes[block_size(name)]) for name in SCALES}
    xs = {size: extreme_rows(rng, num_rows, length) for size, length in sizes.items()}
    for name, products in multiply(model, xs, weights, np.zeros(1, np.int64)).items():
        check(name, xs[block_size(name)], weights[name], products)


def extreme_blocks(rng: np.random.Generator, name: str, size_in: int) -> Array:
    """Rows of bytes 0, 255, 127 and 128, and random ones with extreme scales."""
    w = random_blocks(rng, name, 12, size_in)
    for row, byte in enumerate((0, 255, 127, 128)):
        w[row] = byte
    for places in SCALES[name]:
        scales = rng.choice([0, 6e-8, -6e-8, 6e-5, 65504, -65504], (12, size_in // block_size(name)))
        put_float16(w, name, places, scales)
    return w


def extreme_rows(rng: np.random.Generator, num_rows: int, size_in: int) -> Array:
    x = rng.standard_normal((num_rows, size_in), np.float32)
    x[::5] = np.sign(x[::5])
    x[1::5] = 0
    x[2::5, 3] = 1e28
    x[3::5, :GROUP] = 1e-35
    return x


@pytest.mark.compiles
def test_sums_of_groups_are_exact(model: Model) -> None:
    """Integers as large as they get, all of one sign, and activations that are integers: not one rounding."""
    x = np.full((20, 512), 127, np.float32)
    weights = {name: np.full((5, 512 // block_size(name) * block_bytes(name)), 0x80, np.uint8) for name in SCALES}
    for name, w in weights.items():
        for places, value in zip(SCALES[name], (1, 0), strict=True):
            put_float16(w, name, places, np.full((5, 512 // block_size(name)), value))
    for num_rows in (1, 4, 8, 20):
        xs = dict.fromkeys(NUM_BLOCKS, x[:num_rows])
        for name, products in multiply(model, xs, weights, np.zeros(1, np.int64)).items():
            exact = x[:num_rows].astype(np.float64) @ dequantized(name, weights[name]).T.astype(np.float64)
            assert np.array_equal(products.int8, exact), name


@pytest.mark.compiles
def test_a_row_does_not_depend_on_its_batch(model: Model) -> None:
    """To the bit up to 16 rows; a value that is no number stays in its row, a weight in its output."""
    rng, sizes = np.random.default_rng(0), {32: 13 * 32, 256: 512}
    weights = {name: random_blocks(rng, name, 73, sizes[block_size(name)]) for name in SCALES}
    xs = {size: rng.standard_normal((40, length), np.float32) for size, length in sizes.items()}
    alone = multiply(model, {size: x[:1] for size, x in xs.items()}, weights, np.zeros(1, np.int64))
    bad = {name: w.copy() for name, w in weights.items()}
    for name in bad:
        bad[name][1:] = 255
    for num_rows in (2, 4, 5, 8, 13, 40):
        for value in (np.nan, np.inf, -np.inf):
            x = {size: x[:num_rows].copy() for size, x in xs.items()}
            for rows in x.values():
                rows[1:, 5] = value
            for name, products in multiply(model, x, bad, np.zeros(1, np.int64)).items():
                assert np.allclose(products.float32[0, 0], alone[name].float32[0, 0], rtol=1e-4, atol=1e-4)
                assert np.allclose(products.int8[0, 0], alone[name].int8[0, 0], rtol=1e-4, atol=1e-4)
                assert num_rows > 16 or products.int8[0, 0] == alone[name].int8[0, 0], name
                assert not np.isfinite(products.int8[1:, 0]).any(), name
                assert not np.isfinite(products.float32[1:, 0]).any(), name


@pytest.mark.compiles
@pytest.mark.parametrize("num_blocks", [1, 2, 5])
def test_rows_are_dequantized_to_the_bit(model: Model, num_blocks: int) -> None:
    """Of any bytes at all, among them scales that are no numbers; rows in any order, and several times."""
    rng = np.random.default_rng(num_blocks)
    sizes = {size: size * num_blocks for size in NUM_BLOCKS}
    weights = {name: rng.integers(0, 256, (30, num_blocks * block_bytes(name)), np.uint8) for name in SCALES}
    xs = {size: np.zeros((1, length), np.float32) for size, length in sizes.items()}
    numbers = rng.integers(0, 30, 900)
    for name, products in multiply(model, xs, weights, numbers).items():
        with np.errstate(invalid="ignore", over="ignore"):
            expected = dequantized(name, weights[name])[numbers]
        same = products.rows.view(np.uint32) == expected.view(np.uint32)
        assert (same | np.isnan(products.rows) & np.isnan(expected)).all(), name
        assert np.isfinite(expected).mean() > 0.5


@pytest.mark.compiles
def test_rows_are_multiplied_with_the_weights_of_their_experts() -> None:
    """Experts without rows, with one and with many; each row of x may go to several."""
    device, rng, num_experts, out, size_in = DeviceRef.CPU(), np.random.default_rng(0), 5, 21, 512
    names = ("q4_0", "q6_k")
    types = [TensorType(DType.float32, ["tokens", size_in], device), TensorType(DType.int32, ["rows"], device)]
    types += [TensorType(DType.uint8, [num_experts * out, f"{name}_bytes"], device) for name in names]
    with Graph("experts", input_types=types, custom_extensions=kernels.extensions([device])) as graph:
        x, experts, *weights = (value.tensor for value in graph.inputs)
        y = TensorType(DType.float32, [experts.shape[0], out], device)
        graph.output(
            *(
                ops.custom(
                    "graph_pipelines.block_expert_matmul",
                    device,
                    [x, w, experts],
                    [y],
                    parameters={"format": name, "int8_activations": is_int8},
                )[0].tensor
                for name, w in zip(names, weights, strict=True)
                for is_int8 in (True, False)
            )
        )
    model = InferenceSession(devices=[CPU()]).load(graph)
    blocks = [random_blocks(rng, name, num_experts * out, size_in) for name in names]
    for num_tokens, num_chosen in ((1, 1), (1, 3), (40, 2), (9, 5), (120, 4)):
        rows = rng.standard_normal((num_tokens, size_in), np.float32)
        integers, scales = quantized(rows)
        rounded = (integers * scales).reshape(rows.shape)
        chosen = rng.integers(1, num_experts, num_tokens * num_chosen).astype(np.int32)
        results = iter([y.to_numpy() for y in model.execute(rows, chosen, *blocks)])
        for name, w in zip(names, blocks, strict=True):
            by_expert = dequantized(name, w).reshape(num_experts, out, size_in)[chosen]
            for inputs in (rounded, rows):
                exact = np.einsum("ri,roi->ro", np.repeat(inputs, num_chosen, axis=0), by_expert)
                assert np.abs(next(results) - exact).max() <= 1e-5 * np.abs(exact).max()


TARGETS = {
    "x86-64-v2": ("portable", ()),
    "x86-64-v3": ("avx2", ("avx2",)),
    "alderlake": ("avx-vnni", ("avx2", "avx_vnni")),
    "skylake-avx512": ("avx512", ("avx512bw",)),
    "cascadelake": ("avx512-vnni", ("avx512_vnni",)),
}
"""For a CPU the instructions that the kernels choose, and what /proc/cpuinfo calls those that it needs."""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other CPUs are x86-64")
@pytest.mark.parametrize("cpu", TARGETS)
def test_products_on_other_cpus(cpu: str, tmp_path: Path) -> None:
    """Every choice of instructions is compiled; those that this CPU has are run, the portable one among them."""
    library = tmp_path / "products.so"
    source = Path(__file__).with_name("block_products.mojo")
    command = ["build", "--emit", "shared-lib", str(source), "-o", str(library), "-I", str(kernels.SOURCES.parent)]
    done = subprocess_run_mojo([*command, "--target-cpu", cpu], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    instructions, flags = TARGETS[cpu]
    if not set(flags) <= set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip(f"this CPU has no {instructions}")
    InferenceSession(devices=[CPU()])  # the library's threads are MAX's
    products, name = ctypes.CDLL(os.fspath(library)), ctypes.create_string_buffer(16)
    products.instructions(name)
    assert name.value.decode() == instructions
    rng = np.random.default_rng(0)
    shapes = ((1, 5, 3), (3, 33, 2), (8, 7, 5), (5, 97, 5), (13, 160, 3), (20, 100, 5), (70, 17, 3))
    for num_rows, out, num_blocks in shapes:
        for format_name in ("q8_0", "q4_k", "q6_k", "q5_0"):
            size_in = num_blocks * block_size(format_name)
            w = random_blocks(rng, format_name, out, size_in)
            x = np.sign(rng.standard_normal((num_rows, size_in), np.float32))  # sums as large as they get
            result = np.full((num_rows, out), np.nan, np.float32)
            pointers = (ctypes.c_void_p(array.ctypes.data) for array in (result, x, w))
            sizes = (ctypes.c_ssize_t(size) for size in (num_rows, out, size_in))
            getattr(products, format_name)(*pointers, *sizes)
            exact = x.astype(np.float64) @ dequantized(format_name, w).T.astype(np.float64)
            scale = np.abs(x).astype(np.float64) @ magnitudes(format_name, w, dequantized(format_name, w)).T
            assert (np.abs(result - exact) <= (size_in // 4 + 10) * UNIT * scale).all(), format_name


@pytest.mark.slow
def test_the_instructions_have_a_name() -> None:
    known = {f"products of bytes with {instructions}" for instructions, _ in TARGETS.values()}
    assert kernels.product_instructions(DType.int8) in known
