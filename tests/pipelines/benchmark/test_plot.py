"""The drawing of a run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pipelines.benchmark.outcome import Outcome, RequestError, RequestPlan
from pipelines.benchmark.plot import check_can_plot, plot, throughput_over_time
from pipelines.errors import InputError

OUTCOMES = [
    Outcome(RequestPlan("x", 4), 0.0, [0.5, 1.5, 2.5], 2.5, usage_output_tokens=6),
    Outcome(RequestPlan("x", 4), 0.5, [1.2], 1.2, usage_output_tokens=1),
    Outcome(RequestPlan("x", 4), 0.5, [1.2], 1.2, error=RequestError("timeout", "late")),
]


def test_throughput_spreads_tokens_over_chunks() -> None:
    assert throughput_over_time(OUTCOMES[:2], 3.0) == ([0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 2.0])
    assert throughput_over_time([], 0.0) == ([0.0, 1.0], [0.0])
    assert len(throughput_over_time(OUTCOMES[:2], 5000.0)[1]) == 100


@pytest.mark.slow
@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("b.SVG", b"<?xml")])
@pytest.mark.parametrize("outcomes", [OUTCOMES, OUTCOMES[1:2], []])
def test_drawings(name: str, magic: bytes, outcomes: list[Outcome], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    check_can_plot(path)
    plot(outcomes, 3.0, "model $x_y$ at http://localhost " * 8, path)
    assert path.read_bytes().startswith(magic)


def test_a_drawing_that_is_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"ends with \.png or \.svg"):
        check_can_plot(tmp_path / "plot.pdf")
    with pytest.raises(InputError, match="there is no folder"):
        _with_matplotlib(monkeypatch, is_there=True)
        check_can_plot(tmp_path / "none" / "plot.png")
    with pytest.raises(InputError, match=r"pip install 'graph-pipelines\[benchmark\]'"):
        _with_matplotlib(monkeypatch, is_there=False)
        check_can_plot(tmp_path / "plot.png")


def _with_matplotlib(monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    def find_spec(name: str) -> Any:
        assert name == "matplotlib"
        return is_there or None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
