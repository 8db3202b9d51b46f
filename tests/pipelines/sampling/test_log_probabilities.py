"""Log probabilities of chosen tokens and of prompts against a softmax in float64."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.sampling.log_probabilities import LogProbabilitiesMixin, log_probabilities, prompt_log_probabilities

Row = NDArray[np.float32]
LARGE = 40_000  # more than enough for the shortcuts that small vocabularies do not take


def normal_row(size: int, spread: float = 1.0, seed: int = 0) -> Row:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def test_log_probabilities() -> None:
    row = normal_row(LARGE, 4.0)
    exact = row - np.log(np.exp(row.astype(np.float64)).sum())
    entry = log_probabilities(row, 17, 5)
    assert entry.token_id == 17
    assert entry.logprob == pytest.approx(exact[17], rel=1e-6)
    best = np.argsort(-exact)[:5]
    assert [token for token, _ in entry.top] == best.tolist()
    assert [logprob for _, logprob in entry.top] == pytest.approx(exact[best], rel=1e-6)


def test_log_probabilities_of_equal_and_of_few_tokens() -> None:
    row = np.array([1, 2, 1, 2], np.float32)
    assert [token for token, _ in log_probabilities(row, 0, 3).top] == [1, 3, 0]
    assert len(log_probabilities(row, 0, 20).top) == 4
    assert log_probabilities(row, 0, 0).top == ()


def test_log_probabilities_of_a_batch() -> None:
    rows = np.stack([normal_row(10, seed=seed) for seed in range(3)])
    entries = LogProbabilitiesMixin().compute_log_probabilities(rows, [4, 5, 6], [2, None, 0])
    assert entries == [log_probabilities(rows[0], 4, 2), None, log_probabilities(rows[2], 6, 0)]


def test_log_probabilities_of_a_prompt_slab_by_slab() -> None:
    rows = np.stack([normal_row(LARGE, 4.0, seed) for seed in range(5)])
    next_tokens = [int(rows[0].argmin()), 2, 3, 4, LARGE - 1]
    entries = prompt_log_probabilities(rows, next_tokens, 3)
    assert entries == [log_probabilities(row, token, 3) for row, token in zip(rows, next_tokens, strict=True)]
    assert entries == [
        *prompt_log_probabilities(rows[:2], next_tokens[:2], 3),
        *prompt_log_probabilities(rows[2:], next_tokens[2:], 3),
    ]
    assert entries[0].token_id not in [token for token, _ in entries[0].top]
    assert prompt_log_probabilities(rows[:0], [], 3) == []


def test_every_row_of_a_slab_has_a_next_token() -> None:
    with pytest.raises(ValueError, match="shorter"):
        prompt_log_probabilities(np.zeros((3, 4), np.float32), [1, 2], 0)


def test_a_slab_is_not_copied() -> None:
    slab = np.zeros((64, LARGE), np.float32)
    tracemalloc.start()
    try:
        prompt_log_probabilities(slab, [0] * 64, 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < slab.nbytes / 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_logits_have_no_log_probabilities(value: float) -> None:
    row = normal_row(100)
    row[40] = value
    with pytest.raises(FloatingPointError):
        log_probabilities(row, 3, 2)
    with pytest.raises(FloatingPointError):
        log_probabilities(np.full(3, -np.inf, np.float32), 0, 0)


def test_a_token_without_a_chance_has_no_finite_log_probability() -> None:
    row = np.array([0, -np.inf, 0], np.float32)
    assert log_probabilities(row, 1, 0).logprob == -math.inf
    assert log_probabilities(row, 0, 0).logprob == pytest.approx(-math.log(2))
