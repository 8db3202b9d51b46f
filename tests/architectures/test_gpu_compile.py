"""The graphs compile for GPUs, collectives and kernels included, on a machine that has none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("name", "devices", "encoding"),
    [
        pytest.param("gemma3", "gpu:0,1", "bfloat16", id="collectives"),
        pytest.param("gemma4", "gpu", "bfloat16", id="per-layer embeddings, shared keys and values"),
        pytest.param("qwen3_moe_fp8", "gpu", "float8_e4m3fn", id="experts in float8"),
    ],
)
def test_the_graph_compiles_for_gpus(
    name: str, devices: str, encoding: str, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    script, artifact = Path(__file__).parents[1] / "support" / "compile_for_gpus.py", tmp_path / "model.mef"
    result = subprocess.run(
        [sys.executable, script, checkpoints[name], devices, encoding, artifact],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env=dict(os.environ),  # an engine that was opened in this process has set PYTHONEXECUTABLE behind Python's back
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert artifact.stat().st_size > 100_000
