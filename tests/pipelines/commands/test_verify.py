"""`pipelines verify`: what it measures, what it prints, and what it needs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from command import Caller
from loader import Loader

from pipelines.commands.verify import compare


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    return Caller(capsys, monkeypatch)


@pytest.fixture(scope="module")
def compiled(load: Loader) -> None:
    load("demo")


def test_a_comparison_finds_the_worst_place_and_the_first_token_that_differs() -> None:
    theirs = np.array([[0, 1, 4], [2, 0, 1], [0, 3, 1]], np.float32)
    ours = theirs.copy()
    ours[1] = [1, 0, 1.5]
    result = compare(ours, [5, 6, 7], theirs, [5, 9, 7])
    assert result.num_tokens == 3
    assert result.max_difference == 1 / 4
    assert result.mean_difference == pytest.approx(1.5 / 9 / 4)
    assert result.top1_agreement == pytest.approx(2 / 3)
    assert result.worst_position == 1
    assert (result.num_same_greedy, result.num_greedy) == (1, 3)
    p, q = (np.exp(row) / np.exp(row).sum() for row in (theirs[1], ours[1]))
    assert result.kl == pytest.approx((p * np.log(p / q)).sum() / 3, rel=1e-5)


def test_equal_logits_are_equal_in_every_column() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32) * 50
    result = compare(logits, [1], logits, [1])
    assert (result.max_difference, result.top1_agreement, result.num_same_greedy) == (0, 1, 1)
    assert result.kl == pytest.approx(0, abs=1e-12)


@pytest.mark.usefixtures("compiled")
def test_the_demo_is_equal_to_transformers(call: Caller) -> None:
    result = call("verify")
    assert result.code == 0
    rows = [line.split() for line in result.out.splitlines() if "/" in line]
    assert [row[0] for row in rows] == ["1", "127", "128", "129", "384"]
    assert all(row[3] == "100.00%" and row[6] == "32/32" for row in rows)
    assert result.out.endswith("equal to transformers: logits within 0.0001 of the largest\n")


@pytest.mark.usefixtures("compiled")
def test_a_difference_beyond_the_tolerance_is_exit_code_1(call: Caller) -> None:
    result = call("verify", "--prompt", "import os", "--tolerance", "1e-12")
    assert result.code == 1
    assert "NOT equal to transformers" in result.out


def test_without_torch_it_says_what_to_install(call: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install torch" in call("verify", "--model", str(tmp_path)).error()
