"""The graph compiles for GPUs, collectives and kernels included, on a machine that has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_graph_compiles_for_two_gpus(tiny_gemma3: Path, tmp_path: Path) -> None:
    script, artifact = Path(__file__).parent / "compile_for_gpus.py", tmp_path / "model.mef"
    result = subprocess.run(
        [sys.executable, script, tiny_gemma3, artifact],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env=dict(os.environ),  # an engine that was opened in this process has set PYTHONEXECUTABLE behind Python's back
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert artifact.stat().st_size > 100_000
