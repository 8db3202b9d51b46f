"""The native sampler against its reference in numpy: the same tokens for the same random numbers."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.sampling.native import NO_TOKEN, Cuts, choose_tokens, library, log_softmax
from pipelines.sampling.params import ResolvedSamplingParams, SamplingParams
from pipelines.sampling.reference import draw, log_total, top_ids
from pipelines.sampling.sampler import NoTokenLeftError, Sampler, sample_rows

Row = NDArray[np.float32]
LARGE = 40_000  # enough for a sample to be taken
NUM_SAMPLED = 1024
SIZES = (1, 2, 15, 16, 17, 100, 1023, 1024, 1025, 4095, 4096, 5000, LARGE, LARGE + 3)


def native_exp(x: Row) -> Row:
    """The sampler's own e ** x, of values up to 0."""
    padded = np.zeros(-(-len(x) // 16) * 16, np.float32)
    padded[: len(x)] = x
    result = np.empty_like(padded)
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (result, padded))
    library().exponentials(*pointers, ctypes.c_ssize_t(len(padded)))
    return result[: len(x)]


def rows_of(size: int, rng: np.random.Generator) -> Iterator[tuple[str, Row]]:
    """Rows that are likely, and rows that are hard: flat, tied, masked, peaked, ordered, and those that mislead."""
    normal = rng.standard_normal(size, np.float32)
    yield "narrow", normal * np.float32(0.01)
    yield "normal", normal
    yield "wide", normal * 3
    yield "wider", normal * 8
    yield "equal", np.full(size, 3.5, np.float32)
    yield "two values", (normal > 1).astype(np.float32)
    yield "tied", np.round(normal * 2)
    yield "signed zeros", np.where(normal > 0, np.float32(0.0), np.float32(-0.0))
    yield "ascending", np.sort(normal)
    yield "descending", np.sort(normal)[::-1].copy()
    peaks = rng.integers(0, size, 3)
    yield "peaked", np.where(np.isin(np.arange(size), peaks), normal + 15, normal)
    masked = np.where(rng.random(size) < 0.7, np.float32(-np.inf), normal)
    masked[rng.integers(size)] = 1.0
    yield "masked", masked
    yield "one left", np.where(np.arange(size) == size // 2, np.float32(2), np.float32(-np.inf))
    yield "mostly far below", np.where(rng.random(size) < 0.01, normal, normal - 200)
    if size > NUM_SAMPLED:
        sampled = np.isin(np.arange(size), sampled_places(size))
        yield "sampled are light", np.where(sampled, np.float32(-30), normal)
        yield "sampled are heavy", np.where(sampled, np.float32(2), normal)
        yield "sampled are heaviest", np.where(sampled, np.float32(30), normal)
        yield "sampled are equal", np.where(sampled, np.float32(-1), normal * 3)


def sampled_places(size: int) -> list[int]:
    """The places by which the sampler judges a long row."""
    part, place, places = size // NUM_SAMPLED, 0, []
    for i in range(NUM_SAMPLED):
        place = (place * 1664525 + 1013904223) % 2**32
        places.append(i * part + (place >> 8) % part)
    return places


def parameters() -> Iterator[ResolvedSamplingParams]:
    choices = itertools.product((1.0, 0.6, 2.5), (0, 1, 5, 64, 3000), (1.0, 0.95, 0.3, 0.99999), (0.0, 0.05, 1.0))
    for temperature, top_k, top_p, min_p in choices:
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        yield params.resolved()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_the_same_random_number_draws_the_same_token_as_the_reference(size: int) -> None:
    rng = np.random.default_rng(size)
    chosen = [params for params in parameters() if size < LARGE or rng.random() < 0.15]
    for name, row in rows_of(size, rng):
        uniforms = rng.random(len(chosen)).tolist()
        tokens = choose_tokens([row] * len(chosen), [Cuts.of(params) for params in chosen], uniforms)
        expected = [draw(row, p, uniform, native_exp) for p, uniform in zip(chosen, uniforms, strict=True)]
        assert tokens == expected, [(name, *trial) for trial in zip(chosen, uniforms, tokens, expected, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("top_p", [0.95, 0.5, 0.999])
def test_the_last_kept_token_is_that_of_the_reference(top_p: float) -> None:
    """The largest random number that a token has is where an error of a cut would show."""
    rng = np.random.default_rng(7)
    params = SamplingParams(temperature=1.0, top_p=top_p).resolved()
    for name, row in rows_of(LARGE, rng):
        for uniform in (0.0, 1e-12, 0.25, 1 - 2**-53):
            (token,) = choose_tokens([row], [Cuts.of(params)], [uniform])
            assert token == draw(row, params, uniform, native_exp), (name, uniform)


def test_exponentials_are_accurate() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([-rng.random(2**20) * 87, -np.logspace(-40, 1.9, 2**20), [0.0, -0.0]]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    ulps = np.abs(native_exp(x) - exact) / np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert ulps.max() < 1.0
    assert native_exp(np.array([0.0, -87.1, -1e30, -np.inf], np.float32)).tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("size", SIZES)
def test_the_log_softmax_is_that_of_the_reference(size: int) -> None:
    rng = np.random.default_rng(size)
    rows = dict(rows_of(size, rng))
    for num_top in {0, 1, min(5, size), min(20, size)}:
        entries = log_softmax(list(rows.values()), [num_top] * len(rows))
        for (name, row), entry in zip(rows.items(), entries, strict=True):
            assert not isinstance(entry, Exception), name
            assert entry.log_total == pytest.approx(log_total(row), rel=1e-7, abs=1e-6), name
            assert entry.top_ids == (top_ids(row, num_top) if num_top else []), name


def test_a_row_does_not_depend_on_those_beside_it() -> None:
    rng = np.random.default_rng(3)
    rows = [row for _, row in rows_of(LARGE, rng)]
    cuts = [Cuts(1.0, int(rng.integers(0, 3)) * 50, 0.9, 0.0) for _ in rows]
    uniforms = rng.random(len(rows)).tolist()
    together = choose_tokens(rows, cuts, uniforms)
    assert together == [choose_tokens([row], [c], [u])[0] for row, c, u in zip(rows, cuts, uniforms, strict=True)]
    assert together[::-1] == choose_tokens(rows[::-1], cuts[::-1], uniforms[::-1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.nan])
@pytest.mark.parametrize("place", [0, 17, 5000, 5002])
def test_a_broken_row_has_no_token_and_no_log_probabilities(value: float, place: int) -> None:
    broken, whole = (np.random.default_rng(0).standard_normal(5003, np.float32) for _ in range(2))
    broken[place] = value
    for cuts in (Cuts(0.0, 0, 1.0, 0.0), Cuts(1.0, 5, 0.9, 0.0), Cuts(1.0, 0, 0.9, 0.1)):
        tokens = choose_tokens([whole, broken, whole], [cuts] * 3, [0.5] * 3)
        assert tokens[1] == NO_TOKEN and tokens[0] == tokens[2] >= 0
    first, second = log_softmax([whole, broken], [1, 1])
    assert not isinstance(first, Exception)
    assert isinstance(second, FloatingPointError)


def test_each_row_of_a_batch_has_its_own_end() -> None:
    rows = [np.arange(10, dtype=np.float32) for _ in range(4)]
    rows[1] = np.full(10, np.nan, np.float32)
    nothing_left = SamplingParams(temperature=1.0, allowed_token_ids=(4,), min_tokens=1)
    greedy = SamplingParams()
    samplers = [Sampler(greedy), Sampler(greedy), Sampler(nothing_left, eos_token_ids=(4,)), Sampler(greedy)]
    first, second, third, fourth = sample_rows(rows, samplers)
    assert (first, fourth) == (9, 9)
    assert isinstance(second, FloatingPointError)
    assert isinstance(third, NoTokenLeftError)


def test_a_choice_counts_when_it_is_taken() -> None:
    row = np.random.default_rng(0).standard_normal(100, np.float32)
    params = SamplingParams(temperature=1.0, seed=5, frequency_penalty=0.5)
    sampler, other = Sampler(params), Sampler(params)
    for _ in range(10):
        assert sample_rows([row], [sampler]) == sample_rows([row], [sampler])
        assert sampler.take(sample_rows([row], [sampler])[0]) == other.sample(row)


def test_more_rows_than_are_copied_at_a_time() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((80, 50), np.float32)
    params = [SamplingParams(temperature=1.0, seed=i, logit_bias={3: 5.0} if i % 3 else {}) for i in range(80)]
    together = sample_rows(list(rows), [Sampler(p) for p in params])
    assert together == [Sampler(p).sample(row) for p, row in zip(params, rows, strict=True)]
