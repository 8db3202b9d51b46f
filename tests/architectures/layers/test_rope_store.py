"""RoPE and the storing of keys and values on CPU, in pages of each type."""

from __future__ import annotations

from collections.abc import Mapping
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
TYPES = {DType.float32: np.float32, DType.bfloat16: np.uint16, DType.int8: np.int8}
UNIT = 2.0**-24
NUM_LAYERS, LAYER, PAGE = 2, 1, 48
WEIGHT_OFFSET, EPSILON = 1.0, 1e-6


@pytest.fixture(scope="module")
def model() -> Model:
    """The queries, as they are stored beside keys and values of each type, rotated alone, and stored after norms."""
    types = [
        TensorType(DType.float32, ["tokens", "width"], HOST),
        TensorType(DType.uint32, ["offsets"], HOST),
        TensorType(DType.float32, ["positions", "head_dim"], HOST),
        TensorType(DType.uint32, [1, "tokens"], HOST),
        TensorType(DType.uint32, ["rows", "table"], HOST),
        TensorType(DType.uint32, ["rows"], HOST),
        TensorType(DType.float32, ["tokens", "heads", "head_dim"], HOST),
        TensorType(DType.float32, ["head_dim"], HOST),
        TensorType(DType.float32, ["head_dim"], HOST),
        TensorType(DType.int32, [], HOST),
        *(BufferType(dtype, ["pages", 2, NUM_LAYERS, PAGE, "kv_heads", dtype.name], HOST) for dtype in TYPES),
        BufferType(DType.float32, ["pages", 2, NUM_LAYERS, PAGE, "kv_heads", "float32"], HOST),
    ]
    with Graph("store", input_types=types, custom_extensions=kernels.extensions([HOST])) as graph:
        qkv, offsets, freqs, positions, table, lengths, q, *norms = (value.tensor for value in graph.inputs[:10])
        *paged, normed = graph.inputs[10:]
        layer = ops.constant(LAYER, DType.uint32, HOST)
        outputs = [
            ops.inplace_custom(
                "graph_pipelines.rope_split_store",
                HOST,
                [qkv, offsets, freqs, positions, pages, table, lengths, layer],
                [q.type],
            )[0]
            for pages in paged
        ]
        constants = (ops.constant(value, DType.float32, HOST) for value in (WEIGHT_OFFSET, EPSILON))
        values = [qkv, offsets, freqs, positions, normed, table, lengths, layer, *norms[:2], *constants, norms[2]]
        outputs.append(ops.inplace_custom("graph_pipelines.norm_rope_split_store", HOST, values, [q.type])[0])
        graph.output(*outputs, ops.custom("graph_pipelines.rope", HOST, [q, freqs, positions], [q.type])[0])
    return InferenceSession(devices=[CPU()]).load(graph)


@dataclass
class Step:
    """Four rows of a step with random heads [T, N + 2 K, H], or [T, N + K, H] where keys are values too."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_values: bool = True

    def __post_init__(self) -> None:
        rng, self.new = np.random.default_rng(self.head_dim), np.array([1, 0, 70, 200])
        self.cached, num_tokens = np.array([5, 9, 0, 130]), self.new.sum()
        self.table = rng.permutation(34)[:32].reshape(4, 8).astype(np.uint32)
        starts = zip(self.cached, self.new, strict=True)
        self.positions = np.concatenate([np.arange(count) + start for start, count in starts])
        self.angles = rng.uniform(0, 10, (400, self.head_dim // 2))
        num_all = self.num_heads + (1 + self.has_values) * self.num_kv_heads
        self.heads = rng.standard_normal((num_tokens, num_all, self.head_dim), np.float32)
        self.heads[3, self.num_heads :] = 0
        self.norms = rng.uniform(-1, 1, (2, self.head_dim)).astype(np.float32)

    @property
    def keys(self) -> slice:
        return slice(self.num_heads, self.num_heads + self.num_kv_heads)

    def new_pages(self, dtype: DType) -> Array:
        """Pages of bytes that are all the same."""
        row_size = self.head_dim + 4 * (dtype == DType.int8)
        return np.full([34, 2, NUM_LAYERS, PAGE, self.num_kv_heads, row_size], 77, TYPES[dtype])

    def stored(self, pages: Array) -> Array:
        """Keys and values of the new tokens, [T, 2, K, H]; nothing else in the pages has changed."""
        rows = np.repeat(np.arange(4), self.new)
        places = self.table[rows, self.positions // PAGE], slice(None), LAYER, self.positions % PAGE
        values = pages[places]
        rest = pages.copy()
        rest[places] = 77
        assert (rest == 77).all()
        return values

    def rotated(self, x: Array) -> Array:
        """Heads [T, heads, H] in float64, turned by the angles of their positions."""
        angles = self.angles[self.positions]
        a, b = np.split(x.astype(np.float64), 2, axis=-1)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def run(self, model: Model, pages: Mapping[DType, Array], normed: Array, has_v_norm: bool = False) -> list[Array]:
        """The outputs of the model."""
        freqs = np.stack([np.cos(self.angles), np.sin(self.angles)], axis=-1).reshape(400, -1).astype(np.float32)
        offsets = np.cumsum([0, *self.new]).astype(np.uint32)
        positions, lengths = self.positions[None].astype(np.uint32), self.cached.astype(np.uint32)
        q = np.ascontiguousarray(self.heads[:, : self.num_heads])
        rows = [self.heads.reshape(len(q), -1), offsets, freqs, positions, self.table, lengths, q]
        buffers = [Buffer.from_numpy(memory).view(dtype, memory.shape) for dtype, memory in pages.items()]
        outputs = model.execute(*rows, *self.norms, np.array(has_v_norm, np.int32), *buffers, normed)
        return [output.to_numpy() for output in outputs]


@pytest.mark.compiles
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(1, 1, 16), (4, 1, 256), (6, 3, 80), (8, 2, 512)])
def test_keys_and_values_are_where_attention_reads_them(
    model: Model, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    """Rotated keys and values as they are, to half a step of the type; nothing else in the pages changes."""
    step = Step(num_heads, num_kv_heads, head_dim)
    pages = {dtype: step.new_pages(dtype) for dtype in TYPES}
    *results, _, alone = step.run(model, pages, step.new_pages(DType.float32))

    exact = step.rotated(step.heads)
    exact[:, step.keys.stop :] = step.heads[:, step.keys.stop :]
    tolerance = 4 * UNIT * np.abs(step.heads).max()
    for result in (*results, alone):
        assert np.abs(result - exact[:, :num_heads]).max() <= tolerance
    kept = exact[:, num_heads:].reshape(-1, 2, num_kv_heads, head_dim)
    for dtype, memory in pages.items():
        values = step.stored(memory)
        if dtype == DType.float32:
            assert np.abs(values - kept).max() <= tolerance
        elif dtype == DType.bfloat16:
            floats = (values.astype(np.uint32) << 16).view(np.float32)
            assert (np.abs(floats - kept) <= 2.0**-8 * np.abs(kept) + tolerance).all()
        else:
            scales = np.ascontiguousarray(values[..., head_dim:]).view(np.float32)
            largest = np.abs(kept).max(axis=-1, keepdims=True)
            assert np.abs(scales - largest / 127).max() <= tolerance
            assert (np.abs(values[..., :head_dim] * scales - kept) <= 0.5001 * scales + tolerance).all()


@pytest.mark.compiles
@pytest.mark.parametrize(("has_values", "has_v_norm"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(1, 1, 16), (6, 3, 80), (8, 2, 512)])
def test_heads_are_normalized_before_they_are_rotated(
    model: Model, num_heads: int, num_kv_heads: int, head_dim: int, has_values: bool, has_v_norm: bool
) -> None:
    """A mean square has the roundings of a chain of H / 8 sums, half of which reach its root, and few more."""
    step = Step(num_heads, num_kv_heads, head_dim, has_values)
    pages = step.new_pages(DType.float32)
    queries = step.run(model, {dtype: step.new_pages(dtype) for dtype in TYPES}, pages, has_v_norm)[-2]

    exact = step.heads.astype(np.float64)
    values = exact[:, -num_kv_heads:]
    normed = exact / np.sqrt(np.square(exact).mean(axis=-1, keepdims=True) + EPSILON)
    if has_v_norm:
        values = normed[:, -num_kv_heads:]
    weights = step.norms.astype(np.float64) + WEIGHT_OFFSET
    expected = step.rotated(normed[:, :num_heads] * weights[0])
    keys = step.rotated(normed[:, step.keys] * weights[1])
    tolerance = (head_dim / 16 + 9) * UNIT * max(np.abs(normed).max() * 2, np.abs(exact).max())
    assert np.abs(queries - expected).max() <= tolerance
    assert np.abs(step.stored(pages) - np.stack([keys, values], axis=1)).max() <= tolerance


@pytest.mark.compiles
def test_values_are_rounded_to_the_nearest_even_bfloat16(model: Model) -> None:
    """Ties, overflow, zeros, infinity and NaN as torch rounds them; the smallest numbers may be taken as zeros."""
    step = Step(num_heads=8, num_kv_heads=2, head_dim=512)
    bits = np.random.default_rng(0).integers(0, 2**32, step.heads[:, step.keys.stop :].shape, np.uint32)
    special = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0xFF7F8000, 0, 0x80000000, 0x7F800000]
    bits[0, 0, : len(special) + 2] = [*special, 0x7F800001, 0xFFFFFFFF]
    bits[(bits & 0x7F800000) == 0] &= 0x80000000
    values = step.heads[:, step.keys.stop :] = bits.view(np.float32)
    pages = {dtype: step.new_pages(dtype) for dtype in TYPES}
    step.run(model, pages, step.new_pages(DType.float32))

    expected = torch.from_numpy(values.copy()).bfloat16()
    rounded = torch.from_numpy(step.stored(pages[DType.bfloat16])[:, 1].view(np.int16)).view(torch.bfloat16)
    assert torch.equal(rounded.isnan(), expected.isnan())
    assert torch.equal(rounded.nan_to_num(nan=0).view(torch.int16), expected.nan_to_num(nan=0).view(torch.int16))
