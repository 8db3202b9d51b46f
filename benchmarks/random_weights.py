"""Checkpoints in published shapes without files of their size, whose weights are views of one block of noise."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph.weights import WeightData

from pipelines.loading.safetensors_file import DTYPES, storage_dtype

Array = npt.NDArray[Any]

DEVIATION = 0.02
SCALE = 2e-4
"""Scale of float8 weights, whose noise has a deviation of about 100."""
ALIGNMENT_BYTES = 64
SHARD_BYTES = 2**31
"""Size of a file: a mapping of more than there is memory would be refused."""
NUM_DRAWN = 1 << 22
"""Values that are drawn; the block repeats them."""


def write_empty_checkpoint(
    folder: Path, config: Path, tensors: Mapping[str, tuple[str, list[int]]], tokenizer: Path
) -> Path:
    """Writes config.json, tokenizer files and safetensors files whose tensors are a hole: they take no space on disk.

    Args:
        folder: The folder to write.
        config: A config.json.
        tensors: Names of the tensors -> (dtype, shape).
        tokenizer: A folder with tokenizer files, of any model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(config, folder / "config.json")
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder / path.name)
    shards: list[list[str]] = []
    size = SHARD_BYTES
    for name, entry in tensors.items():
        if size >= SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _num_bytes(*entry)
    files = {f"model-{number:05}-of-{len(shards):05}.safetensors": names for number, names in enumerate(shards, 1)}
    for file, names in files.items():
        _write_hole(folder / file, {name: tensors[name] for name in names})
    weight_map = {name: file for file, names in files.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _write_hole(path: Path, tensors: Mapping[str, tuple[str, list[int]]]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + _num_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)


def _num_bytes(dtype: str, shape: list[int]) -> int:
    return DTYPES[dtype].size_in_bytes * math.prod(shape)


def random_state_dict(state_dict: Mapping[str, WeightData], seed: int = 0) -> dict[str, WeightData]:
    """Replaces the values of a state dict by noise: views of one block for each type, at offsets of their own."""
    blocks = {
        dtype: _block(dtype, max(_size(data) for data in state_dict.values() if data.dtype == dtype), seed)
        for dtype in {data.dtype for data in state_dict.values()}
    }
    return {
        name: WeightData(_view(blocks[data.dtype], data, number), data.name, data.dtype, data.shape)
        for number, (name, data) in enumerate(state_dict.items())
    }


def _size(data: WeightData) -> int:
    return math.prod(int(dim) for dim in data.shape)


def _view(block: Array, data: WeightData, number: int) -> Array:
    """Part of the block that a tensor has, aligned as kernels read it; scales are all the same."""
    shape = [int(dim) for dim in data.shape]
    if data.name.endswith("_scale_inv"):
        return np.full(shape, _bits(np.full(1, SCALE, np.float32), data.dtype)[0])
    step = ALIGNMENT_BYTES // block.itemsize
    start = number % 4096 * step
    return block[start : start + math.prod(shape)].reshape(shape)


def _block(dtype: DType, size: int, seed: int) -> Array:
    """Noise of at least so many values, and room for the offsets; it begins at an aligned address."""
    size += 4096 * ALIGNMENT_BYTES
    random = np.random.default_rng(seed)
    drawn = _bits(random.normal(0, DEVIATION, min(size, NUM_DRAWN)).astype(np.float32), dtype)
    memory = np.empty(size * drawn.itemsize + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    block = memory[start : start + size * drawn.itemsize].view(drawn.dtype)
    for begin in range(0, size, len(drawn)):
        part = block[begin : begin + len(drawn)]
        part[:] = drawn[: len(part)]
    return block


def _bits(values: npt.NDArray[np.float32], dtype: DType) -> Array:
    """Values in a type, as the integers that hold it where numpy lacks it; for float8 the sign and any finite value."""
    storage = storage_dtype(dtype)
    if dtype == DType.bfloat16:
        return (values.view(np.uint32) >> 16).astype(storage)
    if dtype.size_in_bytes == 1:
        bits = (values.view(np.uint32) >> 13).astype(np.uint8)
        return np.where(bits & 127 == 127, bits ^ 1, bits).astype(storage)  # 127 and 255 are not numbers
    return values.astype(storage)
