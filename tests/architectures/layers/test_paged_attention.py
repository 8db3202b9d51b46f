"""Attention over pages on CPU, beside a reference in float64: every mask, ragged rows, each type of a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import BufferType, DeviceRef, Graph, TensorType, ops

from architectures.layers import kernels

Array = npt.NDArray[Any]
HOST = DeviceRef.CPU()
TYPES = (DType.float32, DType.bfloat16, DType.int8)
SCALE_BYTES = 4
"""Of a head's scale, after its int8 values."""
UNIT = 2.0**-24
"""Relative error of a rounding to float32."""
DEPTH, KEYS = 64, 96
"""Most products of a score, and of a sum of values, that the kernel sums one after the other."""
NUM_LAYERS, LAYER = 2, 1


@pytest.fixture(scope="module")
def model() -> Model:
    """Attention over pages of each type; the mask is an input."""
    head = ["pages", 2, NUM_LAYERS, "page_size", "kv_heads"]
    types = [
        TensorType(DType.float32, ["tokens", "heads", "head_dim"], HOST),
        TensorType(DType.uint32, ["offsets"], HOST),
        TensorType(DType.uint32, ["rows", "table"], HOST),
        TensorType(DType.uint32, ["rows"], HOST),
        TensorType(DType.float32, [], HOST),
        TensorType(DType.int32, [], HOST),
        TensorType(DType.int32, [], HOST),
        *(BufferType(dtype, [*head, f"{dtype.name}_size"], HOST) for dtype in TYPES),
    ]
    with Graph("attention", input_types=types, custom_extensions=kernels.extensions([HOST])) as graph:
        q, offsets, table, lengths, *mask = (value.tensor for value in graph.inputs[:7])
        layer = ops.constant(LAYER, DType.uint32, HOST)
        name = "graph_pipelines.paged_attention"
        graph.output(
            *(
                ops.inplace_custom(name, HOST, [q, offsets, pages, table, lengths, layer, *mask], [q.type])[0].tensor
                for pages in graph.inputs[7:]
            )
        )
    return InferenceSession(devices=[CPU()]).load(graph)


@dataclass
class Batch:
    """Ragged rows: their queries [T, N, H], and keys and values [2, tokens, K, H] of each row."""

    q: Array
    rows: list[Array]
    num_cached: list[int]
    page_size: int
    num_pages: int
    table: Array

    @property
    def offsets(self) -> Array:
        counts = [row.shape[1] - cached for row, cached in zip(self.rows, self.num_cached, strict=True)]
        return np.cumsum([0, *counts]).astype(np.uint32)


def new_batch(
    rng: np.random.Generator, rows: list[tuple[int, int]], heads: tuple[int, int, int], page_size: int = 128
) -> Batch:
    """Rows of so many cached and new tokens; heads: of keys, of queries for each of them, and their size."""
    num_kv_heads, group, head_dim = heads
    counts = [-(-(cached + new) // page_size) for cached, new in rows]
    order, table = rng.permutation(sum(counts)), np.zeros((len(rows), max(counts) + 1), np.uint32)
    for row, (end, count) in enumerate(zip(np.cumsum(counts), counts, strict=True)):
        table[row, :count] = order[end - count : end]
    q = rng.standard_normal((sum(new for _, new in rows), num_kv_heads * group, head_dim), np.float32)
    memory = [rng.standard_normal((2, sum(row), num_kv_heads, head_dim), np.float32) for row in rows]
    return Batch(q, memory, [cached for cached, _ in rows], page_size, sum(counts), table)


def stored(values: Array, dtype: DType) -> tuple[Array, Array]:
    """The bytes of heads [..., H] in a cache of this type, and what they are worth."""
    if dtype == DType.float32:
        return values, values
    if dtype == DType.bfloat16:
        bits = values.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
        return rounded, (rounded.astype(np.uint32) << 16).view(np.float32)
    scales = (np.abs(values).max(axis=-1, keepdims=True) / np.float32(127)).astype(np.float32)
    steps = np.rint(values / np.where(scales, scales, 1)).astype(np.int8)
    return np.concatenate([steps, scales.view(np.int8)], axis=-1), steps * scales


def fill_pages(batch: Batch, rows: list[Array], dtype: DType) -> Buffer:
    """Page memory with these rows, and with numbers that spoil every sum in all other places."""
    shape = [batch.num_pages, 2, NUM_LAYERS, batch.page_size, *rows[0].shape[2:]]
    memory = np.full(
        shape, 0x7F if dtype == DType.int8 else np.nan if dtype == DType.float32 else 0x7FC0, rows[0].dtype
    )
    for row, pages in zip(rows, batch.table, strict=True):
        tokens = np.arange(row.shape[1])
        places = pages[tokens // batch.page_size], slice(None), LAYER, tokens % batch.page_size
        memory[places] = row.swapaxes(0, 1)
    return Buffer.from_numpy(memory).view(dtype, shape)


def run(model: Model, batch: Batch, window: int = 0, bidirectional: bool = False, scale: float = 1.0) -> list[Array]:
    """Outputs over a cache of each type."""
    pages = [fill_pages(batch, [stored(row, dtype)[0] for row in batch.rows], dtype) for dtype in TYPES]
    mask = [np.array(scale, np.float32), np.array(window, np.int32), np.array(bidirectional, np.int32)]
    lengths = np.array(batch.num_cached, np.uint32)
    return [y.to_numpy() for y in model.execute(batch.q, batch.offsets, batch.table, lengths, *mask, *pages)]


def seen(num_cached: int, num_tokens: int, window: int, bidirectional: bool) -> Array:
    """Whether each new token sees each token of its row: [new, all]."""
    query, key = np.arange(num_cached, num_tokens)[:, None], np.arange(num_tokens)
    return ((key <= query) | bidirectional) & ((key > query - window) | (window == 0))


def attend(q: Array, row: Array, is_seen: Array, scale: float) -> tuple[Array, Array]:
    """The exact output for a row's queries, and a bound of its error in float32.

    A score errs by a rounding for each step of its sums, a weight by twice as much relative to the others', and a sum
    of weights or values by a rounding for each step in a block of keys, and for each block, whose factor errs as well.
    """
    group, head_dim, num_tokens = q.shape[1] // row.shape[2], q.shape[2], row.shape[1]
    k, v = np.repeat(row.astype(np.float64), group, axis=2).swapaxes(1, 2)  # [heads, tokens, H]
    q, keys = q.astype(np.float64).swapaxes(0, 1), k.swapaxes(1, 2)
    scores = np.where(is_seen, q @ keys * scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    sizes = np.where(is_seen, np.abs(q) @ np.abs(keys) * scale, 0).max(axis=-1, keepdims=True)
    num_steps = min(head_dim, DEPTH + head_dim // DEPTH) + 4
    num_sums = 2 * (KEYS + 8 + 8 * (num_tokens // 32 + 1))
    bound = (4 * num_steps * sizes + num_sums) * UNIT * (weights @ np.abs(v))
    return (weights @ v).swapaxes(0, 1), bound.swapaxes(0, 1)


def check(model: Model, batch: Batch, window: int, bidirectional: bool, scale: float) -> None:
    for dtype, y in zip(TYPES, run(model, batch, window, bidirectional, scale), strict=True):
        for i, (row, cached) in enumerate(zip(batch.rows, batch.num_cached, strict=True)):
            part = slice(batch.offsets[i], batch.offsets[i + 1])
            is_seen = seen(cached, row.shape[1], window, bidirectional)
            if is_seen.size:
                exact, bound = attend(batch.q[part], stored(row, dtype)[1], is_seen, scale)
                place = f"{dtype}, row {i} of {batch.num_cached}, window {window}, {bidirectional=}"
                assert (np.abs(y[part] - exact) <= bound).all(), place


HEADS = [(1, 1, 16), (2, 2, 64), (3, 3, 80), (1, 4, 256), (2, 7, 96), (1, 8, 128), (1, 16, 64), (2, 4, 512)]
"""(kv heads, query heads of each, size)"""


@pytest.mark.compiles
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_each_token_sees_what_its_mask_says(model: Model, heads: tuple[int, int, int], bidirectional: bool) -> None:
    """Up to three windows, in steps of one token and of many, decoding rows beside chunks; pages of any size."""
    rng = np.random.default_rng(sum(heads))
    for window in (0, 1, 5, 100):
        for page_size in (128, 48):
            lengths = [1, 2, 33, 99, 100, 101, 129, 300]
            rows = [(int(rng.choice([0, 1, *lengths])), int(rng.choice([0, 1, 1, 2, *lengths]))) for _ in range(4)]
            rows += [(0, 1), (300, 1)]
            check(model, new_batch(rng, rows, heads, page_size), window, bidirectional, heads[2] ** -0.5)


@pytest.mark.compiles
def test_keys_are_split_over_cores(model: Model) -> None:
    """Rows so long that the results of several parts are merged, for one token and for many."""
    rng = np.random.default_rng(0)
    for rows in ([(2999, 1)], [(1500, 3)], [(2000, 40)], [(700, 1), (5, 1), (1500, 17)]):
        for window in (0, 1000):
            check(model, new_batch(rng, rows, (1, 4, 64)), window, False, 0.3)


@pytest.mark.compiles
def test_a_row_does_not_depend_on_its_batch(model: Model) -> None:
    rng = np.random.default_rng(0)
    rows = [(900, 1), (0, 150), (3, 1), (400, 20)]
    batch = new_batch(rng, rows, (2, 4, 64))
    together = run(model, batch)
    for i, (_, new) in enumerate(rows):
        part, start = slice(batch.offsets[i], batch.offsets[i + 1]), batch.num_cached[i]
        num_pages = -(-(start + new) // 128)
        table = np.arange(num_pages, dtype=np.uint32)[None]
        alone = run(model, Batch(batch.q[part], [batch.rows[i]], [start], 128, num_pages, table))
        for one, all_rows in zip(alone, together, strict=True):
            assert np.array_equal(one, all_rows[part])


@pytest.mark.compiles
@pytest.mark.parametrize(("cached", "new"), [(500, 1), (200, 50)])
def test_huge_scores_leave_one_key(model: Model, cached: int, new: int) -> None:
    """Scores up to 1e30 in both directions: the weights are 1 and 0, and nothing overflows."""
    rng = np.random.default_rng(0)
    batch = new_batch(rng, [(cached, new)], (1, 2, 64))
    batch.q *= np.float32(1e28)
    for dtype, y in zip(TYPES, run(model, batch), strict=True):
        k, v = stored(batch.rows[0], dtype)[1].astype(np.float64)
        scores = batch.q.astype(np.float64).swapaxes(0, 1) @ k[:, 0].T
        best = np.where(seen(cached, cached + new, 0, False), scores, -np.inf).argmax(axis=-1)
        assert np.array_equal(y.swapaxes(0, 1), v[best, 0].astype(np.float32))


@pytest.mark.compiles
@pytest.mark.parametrize(("cached", "new"), [(500, 1), (200, 50)])
def test_a_score_of_minus_infinity_has_no_weight(model: Model, cached: int, new: int) -> None:
    """Every third key is so negative that its score overflows; its value is so large that any weight would show."""
    batch = new_batch(np.random.default_rng(0), [(cached, new)], (1, 2, 64))
    batch.q = np.abs(batch.q)
    (row,) = batch.rows
    is_kept = np.arange(cached + new) % 3 != 0
    is_kept[cached:] = True
    row[0, ~is_kept], row[1, ~is_kept] = -3e38, 3e38
    for dtype, y in zip(TYPES, run(model, batch), strict=True):
        kept = stored(row, dtype)[1][:, is_kept]
        exact, bound = attend(batch.q, kept, seen(cached, cached + new, 0, False)[:, is_kept], 1.0)
        assert (np.abs(y - exact) <= bound).all()


@pytest.mark.compiles
@pytest.mark.parametrize("sharpness", [1, 4])
@pytest.mark.parametrize(
    ("cached", "new", "heads"), [(3000, 1, (1, 4, 256)), (700, 200, (2, 2, 64)), (0, 300, (1, 2, 512))]
)
def test_errors_are_not_larger_than_torch_s(
    model: Model, cached: int, new: int, heads: tuple[int, int, int], sharpness: int
) -> None:
    batch = new_batch(np.random.default_rng(0), [(cached, new)], heads)
    batch.q *= sharpness
    scale, is_seen = heads[2] ** -0.5, seen(cached, cached + new, 0, False)
    exact, _ = attend(batch.q, batch.rows[0], is_seen, scale)
    q, (k, v) = torch.from_numpy(batch.q), torch.from_numpy(batch.rows[0]).repeat_interleave(heads[1], 2)
    scores = (q.permute(1, 0, 2) @ k.permute(1, 2, 0) * scale).masked_fill(~torch.from_numpy(is_seen), -torch.inf)
    theirs = (torch.softmax(scores, -1) @ v.permute(1, 0, 2)).permute(1, 0, 2).numpy()
    ours = run(model, batch, scale=scale)[0]
    assert np.sqrt(np.mean((ours - exact) ** 2)) <= 1.1 * np.sqrt(np.mean((theirs - exact) ** 2))
