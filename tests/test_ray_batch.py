"""Batches of files with Ray Data, on the demo model: examples/ray_batch.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from serving import eventually

pytest.importorskip("ray", reason="Ray is not installed: make test-ray")

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.compiles]

SCRIPT = Path(__file__).parents[1] / "examples" / "ray_batch.py"
NUM_GOOD = 400


def started(inputs: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), str(inputs), "--output", str(output), "--lines", "8"]
    return subprocess.Popen(command, env=dict(os.environ), start_new_session=True, stderr=subprocess.DEVNULL)


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    inputs, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bodies = [{"model": "demo", "prompt": f"def f{i}(", "max_tokens": 16} for i in range(NUM_GOOD)]
    bodies.append({"model": "demo", "max_tokens": 16})
    lines = [
        json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body})
        for number, body in enumerate(bodies)
    ]
    inputs.write_text("\n".join([*lines, "{no JSON"]))

    with started(inputs, output) as first:
        eventually(lambda: num_lines(output) > 20 or first.poll() is not None, timeout_s=120)
        os.killpg(first.pid, signal.SIGKILL)
    assert 20 < num_lines(output) < NUM_GOOD
    with started(inputs, output) as second:
        assert second.wait(300) == 0

    results = [json.loads(line) for line in output.read_text().splitlines()]
    ends = {result["custom_id"]: result for result in results}
    assert len(results) == len(ends) == NUM_GOOD + 2
    assert all(ends[str(number)]["response"]["body"]["choices"][0]["text"] for number in range(NUM_GOOD))
    assert ends[str(NUM_GOOD)]["response"]["status_code"] == 400
    assert "no JSON" in ends[None]["error"]["message"]
