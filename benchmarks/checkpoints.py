"""Random checkpoints in published shapes, for measurements that do not depend on the weights' values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

BYTES = {"BF16": 2, "F32": 4}


def write_random_checkpoint(
    folder: Path, config: Path, tensors: Mapping[str, tuple[str, list[int]]], tokenizer: Path, seed: int = 0
) -> Path:
    """Writes config.json, the tokenizer's files and a model.safetensors of bfloat16 noise of deviation 0.02.

    Args:
        folder: The folder to write.
        config: A config.json.
        tensors: Names of the tensors -> (dtype, shape).
        tokenizer: A folder with tokenizer files, of any model.
        seed: Seed of the noise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(config, folder / "config.json")
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder / path.name)
    header: dict[str, Any] = {}
    end = 0
    for name, (_, shape) in tensors.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # One block of noise, repeated with shifts: drawing billions of normals would take minutes.
    noise = np.random.default_rng(seed).normal(0, 0.02, 2**22 + 1021).astype(np.float32)
    block = (noise.view(np.uint32) >> 16).astype(np.uint16)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for i, (_, shape) in enumerate(tensors.values()):
            left = int(np.prod(shape))
            shifted = np.roll(block, 7919 * i)
            while left > 0:
                file.write(shifted[:left].tobytes())
                left -= len(shifted)
    return folder


def read_tensor_list(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Reads a tensors.json: names -> (dtype, shape)."""
    return {name: (dtype, shape) for name, (dtype, shape) in json.loads(path.read_text()).items()}
