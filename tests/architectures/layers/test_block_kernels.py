"""The Mojo kernels for blocks of quantized weights: every number of rows, tails of every kind, extreme blocks."""

from __future__ import annotations

from dataclasses import dataclass
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
    """The results of one format for x [rows, in] and w [out, in]."""

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


def exact_product(x: Array, weight: Array) -> tuple[Array, Array]:
    """X @ weight.T in float64, and the same of the magnitudes, which bounds are relative to."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    return x @ weight.T, np.abs(x) @ np.abs(weight).T


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

    The float kernel rounds a weight once (q6_k, and the difference of scale * value and a minimum), the sum of a piece
    and its vector, then of the pieces, at most as often as it adds. The int8 kernel's sums of groups are exact; each is
    multiplied by two scales and added, and so is the minimum of a group times the sum of its activations.
    """
    weight = dequantized(name, w)
    num_roundings = min(x.shape[1], PIECE + x.shape[1] // 4) + 10
    exact, scale = exact_product(x, weight)
    assert (np.abs(products.float32 - exact) <= num_roundings * UNIT * scale).all(), name
    assert (np.abs(products.plain - exact) <= 2 * UNIT * np.abs(exact) + UNIT**2 * scale).all(), name
    integers, scales = quantized(x)
    rounded = (integers * scales.astype(np.float64)).reshape(x.shape)
    exact, scale = exact_product(rounded, weight)
    if SCALES[name][1]:  # the minima are added apart, so that their magnitudes count apart
        scale = scale + np.abs(rounded) @ minima_of(name, w, weight).T
    num_roundings = 2 * (x.shape[1] // GROUP) + 8
    assert (np.abs(products.int8 - exact) <= num_roundings * UNIT * scale).all(), name


def minima_of(name: str, w: Array, weight: Array) -> Array:
    """Twice the magnitude of each weight's minimum: what a weight is if its value is zero."""
    zeros = w.copy().reshape(w.shape[0], -1, block_bytes(name))
    first = {"q4_1": 4, "q5_1": 4, "q4_k": 16, "q5_k": 16}[name]
    zeros[..., first:] = 0
    return 2 * np.abs(dequantized(name, zeros.reshape(w.shape)).astype(np.float64))


@pytest.mark.compiles
@pytest.mark.parametrize("out", NUM_OUTPUTS)
@pytest.mark.parametrize("round_", range(4))
def test_products_equal_those_of_exact_arithmetic(model: Model, out: int, round_: int) -> None:
    rng = np.random.default_rng([out, round_])
    sizes = {size: size * counts[round_ % len(counts)] for size, counts in NUM_BLOCKS.items()}
    weights = {name: random_blocks(rng, name, out, sizes[block_size(name)]) for name in SCALES}
    for num_rows in NUM_ROWS:
        xs = {size: rng.standard_normal((num_rows, sizes[size]), np.float32) for size in sizes}
        for name, products in multiply(model, xs, weights, np.zeros(1, np.int64)).items():
            check(name, xs[block_size(name)], weights[name], products)
