"""The graphs compile for GPUs, collectives and kernels included, on a machine that has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "compile_for_gpus.py"
UNREAD = {"layers.3.post_feedforward_layernorm.weight.shard1"}
"""Weights that the compiler leaves out: the head, on the first device, reads the last sum there alone."""


@pytest.mark.gpu_compile
@pytest.mark.parametrize(
    ("name", "devices", "encoding", "graphs"),
    [
        pytest.param("gemma3", "gpu:0,1", "bfloat16", ["decoder"], id="collectives"),
        pytest.param("gemma4", "gpu", "bfloat16", ["decoder"], id="per-layer embeddings, shared keys and values"),
        pytest.param("llama3", "gpu", "bfloat16", ["decoder"], id="llama"),
        pytest.param("qwen3_dense_fp8", "gpu", "float8_e4m3fn", ["decoder"], id="float8"),
        pytest.param("qwen3_moe_fp8", "gpu", "float8_e4m3fn", ["decoder"], id="experts in float8"),
        pytest.param(
            "gemma3_multimodal_for_gpus", "gpu", "bfloat16", ["decoder_for_images", "vision_tower"], id="images"
        ),
    ],
)
def test_graphs_compile_for_gpus_with_all_inputs_and_weights(
    name: str, devices: str, encoding: str, graphs: list[str], checkpoints: Mapping[str, Path]
) -> None:
    result = subprocess.run(
        [sys.executable, SCRIPT, checkpoints[name], devices, encoding, *graphs],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env=dict(os.environ),  # an engine that was opened in this process has set PYTHONEXECUTABLE behind Python's back
    )
    assert result.returncode == 0, result.stderr[-2000:]
    compiled = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [graph["graph"] for graph in compiled] == graphs
    for graph in compiled:
        gpus = [[kind, number] for kind, number in graph["declared"]["devices"] if kind == "gpu"]
        assert gpus == [["gpu", number] for number in range(2 if devices == "gpu:0,1" else 1)]
        assert graph["compiled"]["num_inputs"] == graph["declared"]["num_inputs"] > 0
        unread = set(graph["declared"]["weights"]) - set(graph["compiled"]["weights"])
        assert unread <= UNREAD and len(graph["compiled"]["weights"]) > len(unread)
        assert graph["compiled"]["devices"] == sorted([["cpu", 0], *gpus])
