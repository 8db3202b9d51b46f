"""RoPE and the storing of keys and values on CPU, in pages of each type."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
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


@pytest.fixture(scope="module")
def model() -> Model:
    """The queries, as they are stored beside keys and values of each type, and rotated alone."""
    types = [
        TensorType(DType.float32, ["tokens", "width"], HOST),
        TensorType(DType.uint32, ["offsets"], HOST),
        TensorType(DType.float32, ["positions", "head_dim"], HOST),
        TensorType(DType.uint32, [1, "tokens"], HOST),
        TensorType(DType.uint32, ["rows", "table"], HOST),
        TensorType(DType.uint32, ["rows"], HOST),
        TensorType(DType.float32, ["tokens", "heads", "head_dim"], HOST),
        *(BufferType(dtype, ["pages", 2, NUM_LAYERS, PAGE, "kv_heads", dtype.name], HOST) for dtype in TYPES),
    ]
    with Graph("store", input_types=types, custom_extensions=kernels.extensions([HOST])) as graph:
        qkv, offsets, freqs, positions, table, lengths, q = (value.tensor for value in graph.inputs[:7])
        layer = ops.constant(LAYER, DType.uint32, HOST)
        outputs = [
            ops.inplace_custom(
                "graph_pipelines.rope_split_store",
                HOST,
                [qkv, offsets, freqs, positions, pages, table, lengths, layer],
                [q.type],
            )[0]
            for pages in graph.inputs[7:]
        ]
        graph.output(*outputs, ops.custom("graph_pipelines.rope", HOST, [q, freqs, positions], [q.type])[0])
    return InferenceSession(devices=[CPU()]).load(graph)


def rotated(x: Array, angles: Array) -> Array:
    """Heads [T, heads, H] in float64, turned by the angles [T, H / 2]."""
    a, b = np.split(x.astype(np.float64), 2, axis=-1)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


@pytest.mark.compiles
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(1, 1, 16), (4, 1, 256), (6, 3, 80), (8, 2, 512)])
def test_keys_and_values_are_where_attention_reads_them(
    model: Model, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    """Rotated keys and values as they are, to half a step of the type; nothing else in the pages changes."""
    rng, cached, new = np.random.default_rng(head_dim), np.array([5, 9, 0, 130]), np.array([1, 0, 70, 200])
    offsets, num_tokens = np.cumsum([0, *new]).astype(np.uint32), new.sum()
    table = rng.permutation(34)[:32].reshape(4, 8).astype(np.uint32)
    positions = np.concatenate([np.arange(count) + start for start, count in zip(cached, new, strict=True)])
    angles = rng.uniform(0, 10, (400, head_dim // 2))
    freqs = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(400, head_dim).astype(np.float32)
    heads = rng.standard_normal((num_tokens, num_heads + 2 * num_kv_heads, head_dim), np.float32)
    heads[3, num_heads:] = 0
    pages = {
        dtype: np.full([34, 2, NUM_LAYERS, PAGE, num_kv_heads, head_dim + 4 * (dtype == DType.int8)], 77, kind)
        for dtype, kind in TYPES.items()
    }
    buffers = [Buffer.from_numpy(memory).view(dtype, memory.shape) for dtype, memory in pages.items()]
    qkv, q = heads.reshape(num_tokens, -1), np.ascontiguousarray(heads[:, :num_heads])
    lengths = cached.astype(np.uint32)
    results = model.execute(qkv, offsets, freqs, positions[None].astype(np.uint32), table, lengths, q, *buffers)

    exact = rotated(heads, angles[positions])
    exact[:, num_heads + num_kv_heads :] = heads[:, num_heads + num_kv_heads :]
    tolerance = 4 * UNIT * np.abs(heads).max()
    for result in results:
        assert np.abs(result.to_numpy() - exact[:, :num_heads]).max() <= tolerance
    rows = np.repeat(np.arange(4), new)
    places = table[rows, positions // PAGE], slice(None), LAYER, positions % PAGE
    kept = exact[:, num_heads:].reshape(num_tokens, 2, num_kv_heads, head_dim)
    for dtype, memory in pages.items():
        values = memory[places]
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
        memory[places] = 77
        assert (memory == 77).all()
