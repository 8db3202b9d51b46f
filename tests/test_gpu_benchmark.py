"""The GPU benchmark's parts that need no GPU: checkpoints that are holes, noise that is a view, lines that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import gpu
import numpy as np
import pytest
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData
from random_weights import ALIGNMENT_BYTES, random_state_dict, write_empty_checkpoint

from pipelines.loading.checkpoint import DEMO_FOLDER, resolve_config
from pipelines.loading.encodings.float8_e4m3fn import _values
from pipelines.loading.safetensors_file import read_tensors

TENSORS = {"a.weight": ("BF16", [1 << 16, 1 << 15]), "b.weight": ("F8_E4M3", [1 << 16, 1 << 15]), "c": ("F32", [7])}


def test_a_checkpoint_of_gigabytes_takes_no_space(tmp_path: Path) -> None:
    folder = write_empty_checkpoint(tmp_path / "model", DEMO_FOLDER / "config.json", TENSORS, DEMO_FOLDER)
    paths = resolve_config(str(folder)).download_weights()
    assert len(paths) == 3, "a file is begun where the last has 2 GiB"
    assert sum(path.stat().st_size for path in paths) > 6 * 2**30
    assert sum(path.stat().st_blocks * 512 for path in paths) < 2**20
    found = {tensor.name: (tensor.dtype_name, list(tensor.shape)) for path in paths for tensor in read_tensors(path)}
    assert found == TENSORS


def test_noise_is_one_block_of_finite_values_where_kernels_read_them() -> None:
    shapes = {"x": (300, 64), "y": (64,), "z": (300, 64)}
    state = {
        f"{name}.{dtype.name}": WeightData(None, f"{name}.{dtype.name}", dtype, Shape(shape))  # type: ignore[arg-type]
        for name, shape in shapes.items()
        for dtype in (DType.bfloat16, DType.float32, DType.float8_e4m3fn)
    }
    state["s"] = WeightData(None, "s_scale_inv", DType.bfloat16, Shape((3, 1)))  # type: ignore[arg-type]
    noise = random_state_dict(state)
    values = {name: np.asarray(data.data) for name, data in noise.items()}
    for name, array in values.items():
        assert array.shape == tuple(int(dim) for dim in state[name].shape)
        assert name == "s" or array.ctypes.data % ALIGNMENT_BYTES == 0
    one, other = values["x.float32"], values["z.float32"]
    assert np.shares_memory(one, other) and (one != other).any()
    assert one.std() == pytest.approx(0.02, rel=0.05)
    widened = (values["x.bfloat16"].astype(np.uint32) << 16).view(np.float32)
    assert widened.std() == pytest.approx(0.02, rel=0.05)
    eight_bits = _values()[values["x.float8_e4m3fn"]]
    assert np.isfinite(eight_bits).all() and 50 < eight_bits.std() < 200
    assert len(set(values["s"].ravel().tolist())) == 1


@pytest.mark.slow
def test_lines_of_a_worker_that_fails_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exit code after them; a worker that hangs is ended in time."""
    worker, output = tmp_path / "worker.py", tmp_path / "out.jsonl"
    monkeypatch.setattr(gpu, "WORKER", worker)
    settings = {"system": "pipelines", "model": "demo"}
    worker.write_text("import sys\nprint('{\"row\": 1}', flush=True)\nsys.exit(3)\n")
    gpu.run_worker(settings, output, 60)
    worker.write_text("import time\nprint('{\"row\": 2}', flush=True)\ntime.sleep(600)\n")
    gpu.run_worker(settings, output, 5)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert lines[0] == {"row": 1} and lines[1] == settings | {"row": "error", "exit_code": 3}
    assert lines[2:] == [{"row": 2}, settings | {"row": "error", "exit_code": -9}]
