"""Quantization: bit for bit as the gguf package where it can write a format, and by errors and a search where not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from max.dtype import DType

from pipelines.errors import InputError
from pipelines.loading.blocks import FORMATS
from pipelines.loading.quantize import quantize, quantize_into

pytestmark = pytest.mark.slow  # the first run on a machine compiles the library

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

SIMPLE = ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
LARGEST_SCALE = 65504.0  # of float16
ROWS, COLUMNS = 33, 1024


def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def values_of(kind: str) -> Floats:
    """Rows of weights: each kind stresses something else."""
    shape, random = (ROWS, COLUMNS), rng()
    made: dict[str, Any] = {
        "normal": lambda: random.standard_normal(shape) * 0.02,
        "heavy tails": lambda: random.standard_t(3, shape) * 0.02,
        "ties of 4 bits": lambda: random.integers(-16, 17, shape) / 16,
        "ties of 8 bits": lambda: random.integers(-254, 255, shape) / 2,
        "two extremes": lambda: random.choice([-0.75, 0.75, 0.1], shape),
        "zeros": lambda: np.zeros(shape),
        "negative zeros": lambda: -np.zeros(shape),
        "one weight a block": lambda: np.where(np.arange(COLUMNS) % 32 == 7, random.standard_normal(shape), 0.0),
        "subnormal scales": lambda: random.standard_normal(shape) * 10.0 ** random.uniform(-7, -4, (ROWS, 1)),
        "scales that are zero": lambda: random.standard_normal(shape) * 10.0 ** random.uniform(-34, -8, (ROWS, 1)),
        "all magnitudes": lambda: random.standard_normal(shape) * 10.0 ** random.uniform(-40, 4, shape),
        "positive": lambda: random.uniform(0.5, 1, shape),
        "negative": lambda: random.uniform(-1, -0.9, shape),
        "large": lambda: random.uniform(-5e5, 5e5, shape),
        "constant": lambda: np.full(shape, -0.3),
    }
    return np.asarray(made[kind](), np.float32)


KINDS = [
    "normal",
    "heavy tails",
    "ties of 4 bits",
    "ties of 8 bits",
    "two extremes",
    "zeros",
    "negative zeros",
    "one weight a block",
    "subnormal scales",
    "scales that are zero",
    "all magnitudes",
    "positive",
    "negative",
    "large",
    "constant",
]


def round_trip(values: Floats, name: str) -> Doubles:
    blocks = quantize(values, DType.float32, FORMATS[name], "w")
    return np.asarray(FORMATS[name].dequantize(blocks), np.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SIMPLE)
def test_blocks_of_32_are_those_of_the_gguf_package(name: str, kind: str) -> None:
    values = values_of(kind)
    if name.endswith("_1"):
        values = values.clip(-LARGEST_SCALE, LARGEST_SCALE)  # minima are in float16 too
    expected = gguf.quants.quantize(values, FORMATS[name].ggml_type)
    np.testing.assert_array_equal(quantize(values, DType.float32, FORMATS[name], "w"), expected)


@pytest.mark.parametrize("magnitude", [1e-37, 1e-39, 1e-44])
@pytest.mark.parametrize("name", SIMPLE)
def test_blocks_of_the_smallest_numbers_are_zero(name: str, magnitude: float) -> None:
    """Processors may take such scales for 0, and what gguf makes of an infinite inverse is undefined."""
    values = (rng().standard_normal((4, 64)) * magnitude).astype(np.float32)
    assert np.abs(values).max() > 0
    assert not round_trip(values, name).any()
    blocks = (quantize(array, DType.float32, FORMATS[name], "w") for array in (values, np.zeros_like(values)))
    num_bytes = 4 if name.endswith("_1") else 2  # of scales and minima, which may be -0
    tiny, zero = (found.reshape(8, -1)[:, num_bytes:] for found in blocks)
    np.testing.assert_array_equal(tiny, zero)


@pytest.mark.parametrize("name", FORMATS)
def test_bfloat16_is_quantized_as_the_float32_that_it_is(name: str) -> None:
    values = (values_of("heavy tails").view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    expected = quantize(values, DType.float32, FORMATS[name], "w")
    np.testing.assert_array_equal(quantize(bits, DType.bfloat16, FORMATS[name], "w"), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_parts_are_as_the_whole_whichever_threads_make_them(name: str) -> None:
    values = np.concatenate([values_of(kind) for kind in ("normal", "heavy tails", "positive")] * 4)
    whole = quantize(values, DType.float32, FORMATS[name], "w")
    parts = np.zeros_like(whole)
    cuts = [slice(start, start + 7) for start in range(0, len(values), 7)]

    def work(rows: slice) -> None:
        quantize_into(parts[rows], values[rows], DType.float32, FORMATS[name], "w")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, cuts))
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_in_more_dimensions_and_no_rows(name: str) -> None:
    values = values_of("normal").reshape(3, 11, COLUMNS)
    row_bytes = FORMATS[name].row_bytes(COLUMNS)
    blocks = quantize(values, DType.float32, FORMATS[name], "w")
    assert blocks.shape == (3, 11, row_bytes)
    flat = quantize(values.reshape(33, COLUMNS), DType.float32, FORMATS[name], "w")
    np.testing.assert_array_equal(blocks.reshape(33, row_bytes), flat)
    assert quantize(values[:0], DType.float32, FORMATS[name], "w").shape == (0, 11, row_bytes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, COLUMNS * 70 + 33, COLUMNS * 130 - 1])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_finite_number_is_refused(name: str, place: int, value: float) -> None:
    values = np.zeros((130, COLUMNS), np.float32)
    values.reshape(-1)[place] = value
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    for array, dtype in ((values, DType.float32), (bits, DType.bfloat16)):
        with pytest.raises(InputError) as caught:
            quantize(array, dtype, FORMATS[name], "layers.3.w")
        assert "tensor 'layers.3.w' has values that aren't finite numbers" in str(caught.value)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "steps", "sign"),
    [
        ("q8_0", 127, 1),
        ("q8_0", 127, -1),
        ("q5_0", 16, 1),
        ("q5_1", 31, 1),
        ("q5_1", 1, -1),  # a minimum
        ("q4_0", 8, -1),
        ("q4_1", 15, 1),
        ("q4_1", 1, -1),  # a minimum
        ("q4_k", 63 * 15, 1),
        ("q4_k", 63, -1),  # a minimum
        ("q5_k", 63 * 31, 1),
        ("q5_k", 63, -1),  # a minimum
        ("q6_k", 128 * 32, 1),
        ("q6_k", 128 * 32, -1),
    ],
)
def test_what_needs_a_larger_scale_than_float16_has_is_refused(name: str, steps: int, sign: int) -> None:
    values = np.zeros((1, 256), np.float32)
    values[0, 100] = sign * LARGEST_SCALE * steps * 1.01
    with pytest.raises(InputError, match=f"tensor 'w' has values that are too large for the scales of {name}"):
        quantize(values, DType.float32, FORMATS[name], "w")
    values *= np.float32(0.95)
    largest = abs(float(values[0, 100]))
    assert abs(round_trip(values, name)[0, 100] - values[0, 100]) <= largest / 15  # a step of the coarsest format


# Formats that the package can't write are compared with the same search in float64, by its error: where two scales are
# equally good, float32 may find the other.


SEARCHED = [
    "normal",
    "heavy tails",
    "ties of 4 bits",
    "ties of 8 bits",
    "subnormal scales",
    "scales that are zero",
    "positive",
    "negative",
    "large",
]


def groups_of(values: npt.NDArray[Any], size: int) -> Doubles:
    return values.astype(np.float64).reshape(-1, 256 // size, size)


def stored_factor(wanted: Doubles) -> Doubles:
    """The factor of a block's scales as a float16: the next larger one if the nearest is much too small."""
    nearest = wanted.astype(np.float16)
    larger = (nearest.view(np.uint16) + np.uint16(1)).view(np.float16)
    return np.where(np.abs(nearest) < np.abs(wanted) * (1 - 1 / 128), larger, nearest).astype(np.float64)


def divide(one: Doubles, other: Doubles) -> Doubles:
    """One / other, or 0."""
    return np.divide(one, other, out=np.zeros(np.broadcast_shapes(one.shape, other.shape)), where=other != 0)


@dataclass(frozen=True)
class Search:
    """The search for scales and minima of quants up to `levels`: so many trials, from `first` steps of a range on.

    tolerance: of the error of all groups. With more levels more fits are nearly as good, float32 and float64 choose
    different ones in up to a seventh of the groups, and rounding to 6 bits makes of these a better or a worse one.
    """

    levels: int
    first: float
    trials: int
    tolerance: float


SEARCHES = {"q4_k": Search(15, 14.0, 21, 1e-3), "q5_k": Search(31, 30.5, 16, 2e-2)}


def error_k(x: Doubles, w: Doubles, quants: Doubles, scale: Doubles, low: Doubles) -> Doubles:
    difference = quants * scale[..., None] + low[..., None] - x
    return (w * difference**2).sum(-1)


def quants_k(levels: int, x: Doubles, scale: Doubles, low: Doubles) -> Doubles:
    return np.clip(np.rint(divide(x - low[..., None], scale[..., None])), 0, levels)


def weights_k(x: Doubles) -> Doubles:
    return np.sqrt((x**2).mean(-1, keepdims=True)) + np.abs(x)


def search_k(search: Search, x: Doubles, w: Doubles) -> tuple[Doubles, Doubles]:
    """The scales and minima of groups [..., 32] that ggml's make_qkx2_quants finds."""
    low, high = np.minimum(x.min(-1), 0), x.max(-1)
    scale = (high - low) / search.levels
    best = error_k(x, w, quants_k(search.levels, x, scale, low), scale, low)
    for trial in range(search.trials):
        quants = quants_k(search.levels, x, np.maximum(high - low, 0) / (search.first + 0.1 * trial), low)
        wl = w * quants
        ones, l1, ll, x1, xl = (part.sum(-1) for part in (w, wl, wl * quants, w * x, wl * x))
        determinant = ones * ll - l1 * l1
        new_scale, new_low = divide(ones * xl - x1 * l1, determinant), divide(ll * x1 - l1 * xl, determinant)
        new_scale = np.where(new_low > 0, divide(xl, ll), new_scale)
        new_low = np.minimum(new_low, 0)
        error = error_k(x, w, quants, new_scale, new_low)
        is_better = (determinant > 0) & (error < best)
        scale, low, best = (np.where(is_better, *both) for both in ((new_scale, scale), (new_low, low), (error, best)))
    return scale, -low


def round_k(levels: int, x: Doubles, w: Doubles, scale: Doubles, minimum: Doubles) -> Doubles:
    """The errors with the best scales and minima of 6 bits next to these."""
    factors = [stored_factor(made.max(-1, keepdims=True) / 63) for made in (scale, minimum)]
    centers = [np.rint(divide(made, factor)) for made, factor in zip((scale, minimum), factors, strict=True)]
    best = np.full(scale.shape, np.inf)
    for i in range(9):
        s = np.clip(centers[0] + i % 3 - 1, 0, 63) * factors[0]
        low = -np.clip(centers[1] + i // 3 - 1, 0, 63) * factors[1]
        best = np.minimum(best, error_k(x, w, quants_k(levels, x, s, low), s, low))
    return best


def quants_q6(x: Doubles, inverse: Doubles) -> Doubles:
    return np.clip(np.rint(x * inverse[..., None]), -32, 31)


def search_q6(x: Doubles) -> Doubles:
    """The scales of groups [..., 16] that are best of those that ggml's make_qx_quants tries."""
    extreme = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
    scale, best = np.zeros_like(extreme), np.full(extreme.shape, np.inf)
    for trial in range(-9, 10):
        quants = quants_q6(x, divide(np.full_like(extreme, -32 - 0.1 * trial), extreme))
        new_scale = divide((x**3 * quants).sum(-1), (x**2 * quants**2).sum(-1))
        error = (x**2 * (quants * new_scale[..., None] - x) ** 2).sum(-1)
        scale, best = np.where(error < best, new_scale, scale), np.minimum(error, best)
    return scale


def round_q6(x: Doubles, scale: Doubles) -> Doubles:
    """The errors with the best scales of 8 bits next to these."""
    largest = np.take_along_axis(scale, np.abs(scale).argmax(-1, keepdims=True), -1)
    factor = stored_factor(-largest / 128)
    best = np.full(scale.shape, np.inf)
    for i in (-1, 0, 1):
        s = np.clip(np.rint(divide(scale, factor)) + i, -128, 127) * factor
        difference = quants_q6(x, divide(np.ones_like(s), s)) * s[..., None] - x
        best = np.minimum(best, (x**2 * difference**2).sum(-1))
    return best


@pytest.mark.parametrize("kind", SEARCHED)
@pytest.mark.parametrize("name", SEARCHES)
def test_q4_k_and_q5_k_are_as_good_as_the_search_in_float64(name: str, kind: str) -> None:
    values, search = values_of(kind), SEARCHES[name]
    x = groups_of(values, 32)
    w = weights_k(x)
    expected = round_k(search.levels, x, w, *search_k(search, x, w)).sum()
    found = (w * (groups_of(round_trip(values, name), 32) - x) ** 2).sum()
    assert found == pytest.approx(expected, rel=search.tolerance, abs=1e-60)


@pytest.mark.parametrize("kind", SEARCHED)
def test_q6_k_is_as_good_as_the_search_in_float64(kind: str) -> None:
    values = values_of(kind)
    x = groups_of(values, 16)
    expected = round_q6(x, search_q6(x)).sum()
    found = (x**2 * (groups_of(round_trip(values, "q6_k"), 16) - x) ** 2).sum()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-60)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "size", "steps", "levels"), [("q4_k", 32, 15, 63), ("q5_k", 32, 31, 63), ("q6_k", 16, 31, 128)]
)
def test_each_weight_errs_by_little_more_than_half_a_step(
    name: str, size: int, steps: int, levels: int, kind: str
) -> None:
    """Also where blocks have weights of all magnitudes, so that most groups have the smallest scales.

    A step is the part of the group's range, 0 included, that a quant covers; a fit clips no weight by more than a step.
    Scales and minima in turn are off by half of a 63rd, or a 128th, of the block's largest, but for rounding them to
    float16.
    """
    values = values_of(kind)
    x = groups_of(values, size)
    span = np.maximum(x.max(-1), 0) - np.minimum(x.min(-1), 0) if name in SEARCHES else np.abs(x).max(-1)
    largest = span.max(-1, keepdims=True)
    rounding = 1.5 * (largest / levels * (1 + 1 / 128) + steps * 2.0**-24)
    error = np.abs(groups_of(round_trip(values, name), size) - x).max(-1)
    assert (error <= 1.5 * span / steps + rounding).all()
