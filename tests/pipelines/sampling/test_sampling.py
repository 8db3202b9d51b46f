"""Sampling against transformers' logits processors, and the rules of SamplingParams."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.sampling.log_probabilities import LogProbabilitiesMixin, log_probabilities
from pipelines.sampling.params import SamplingParams
from pipelines.sampling.sampler import Sampler, kept_tokens, kth_largest

Row = NDArray[np.float32]
LARGE = 40_000  # more than enough for the shortcuts that small vocabularies do not take


def normal_row(size: int, spread: float = 1.0, seed: int = 0) -> Row:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def peaked_row(size: int, seed: int = 0) -> Row:
    row = normal_row(size, seed=seed)
    row[np.random.default_rng(seed).integers(0, size, 20)] += 12
    return row


def dense(row: Row, params: SamplingParams) -> NDArray[np.float64]:
    """The distribution [V] that Sampler draws from."""
    ids, weights = kept_tokens(row, params)
    probabilities = np.zeros(len(row))
    probabilities[slice(None) if ids is None else ids] = weights
    return probabilities / probabilities.sum()


def reference(row: Row, params: SamplingParams) -> NDArray[np.float64]:
    """The same from transformers, in float64."""
    import torch
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.from_numpy(row.astype(np.float64))[None]
    no_ids = torch.zeros((1, 0), dtype=torch.long)
    scores = TemperatureLogitsWarper(params.temperature)(no_ids, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(no_ids, scores)
    if params.top_p < 1.0:
        scores = TopPLogitsWarper(params.top_p)(no_ids, scores)
    if params.min_p > 0.0:
        scores = MinPLogitsWarper(params.min_p)(no_ids, scores)
    probabilities: NDArray[np.float64] = torch.softmax(scores, dim=-1)[0].numpy()
    return probabilities


@pytest.mark.parametrize(
    "row", [normal_row(1000), normal_row(LARGE, 4.0), peaked_row(LARGE)], ids=["1k", "40k", "peak"]
)
def test_the_distribution_is_that_of_transformers(row: Row) -> None:
    filters = itertools.product((0.5, 1.3), (0, 1, 50, len(row) // 2, 10 * len(row)), (0.3, 0.95, 1.0), (0.0, 0.1, 1.0))
    for temperature, top_k, top_p, min_p in filters:
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        ours, theirs = dense(row, params), reference(row, params)
        np.testing.assert_array_equal(ours > 0, theirs > 0, err_msg=str(params))
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, err_msg=str(params))


@pytest.mark.parametrize("size", [2, 3, 511, 512, 513, 1025, 8191, 8192, LARGE])
def test_the_kth_largest_in_rows_of_any_size(size: int) -> None:
    rows = [normal_row(size), np.round(normal_row(size)), np.zeros(size, np.float32)]
    for row, k in itertools.product(rows, {1, 2, size // 3 + 1, size - 1, size}):
        assert kth_largest(row, k) == np.sort(row)[-k]


def test_equal_logits_at_the_border() -> None:
    row = np.array([0, 1, 1, 1, 1, -5], np.float32)
    assert np.flatnonzero(dense(row, SamplingParams(temperature=1.0, top_k=2))).tolist() == [1, 2, 3, 4]
    assert np.flatnonzero(dense(row, SamplingParams(temperature=1.0, top_p=0.3))).tolist() == [1, 2]
    flat = np.zeros(LARGE, np.float32)
    assert np.flatnonzero(dense(flat, SamplingParams(temperature=1.0, top_p=0.25))).tolist() == list(range(LARGE // 4))


def test_draws_follow_the_distribution() -> None:
    row = np.log(np.array([0.05, 0.5, 0.0625, 0.3, 0.0875], np.float32))
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.8, seed=5))
    counts = np.bincount([sampler.sample(row) for _ in range(20_000)], minlength=5)
    np.testing.assert_allclose(counts / 20_000, [0, 0.625, 0, 0.375, 0], atol=0.01)


def test_draws_from_a_large_row_follow_the_distribution() -> None:
    row = np.full(LARGE, -np.inf, np.float32)
    row[[3, 700, LARGE - 1]] = np.log([0.2, 0.5, 0.3])
    sampler = Sampler(SamplingParams(temperature=1.0, seed=1))
    drawn, counts = np.unique([sampler.sample(row) for _ in range(4000)], return_counts=True)
    assert drawn.tolist() == [3, 700, LARGE - 1]
    np.testing.assert_allclose(counts / 4000, [0.2, 0.5, 0.3], atol=0.03)


def test_a_seed_fixes_the_text_and_no_seed_does_not() -> None:
    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.sample(row) for _ in range(20)]

    row = normal_row(1000)
    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    assert Sampler(SamplingParams()).sample(np.array([1, 3, 2, 3], np.float32)) == 1


@pytest.mark.parametrize("temperature", [1e-30, 1e-3])
def test_a_low_temperature_is_nearly_greedy(temperature: float) -> None:
    row = normal_row(LARGE, 4.0)
    assert Sampler(SamplingParams(temperature=temperature)).sample(row) == row.argmax()


def test_repetition_penalty_is_that_of_transformers() -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    row, prompt = normal_row(50, 0.01), [3, 3, 9, 17]
    sampler, tokens = Sampler(SamplingParams(repetition_penalty=1.5), prompt), list(prompt)
    for _ in range(20):
        scores = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([tokens]), torch.from_numpy(row.copy())[None])
        token = sampler.sample(row)
        assert token == int(scores.argmax())
        tokens.append(token)


def test_presence_and_frequency_count_the_answer_only() -> None:
    row = np.array([1.0, 0.9, 0.5, 0.0], np.float32)
    frequency = Sampler(SamplingParams(frequency_penalty=0.3), prompt=[0, 0, 0])
    # 1.0 .9 | .7 .9 | .7 .6 | .4 .6 | .4 .3 .5 | .4 .3 .2
    assert [frequency.sample(row) for _ in range(6)] == [0, 1, 0, 1, 2, 0]
    presence = Sampler(SamplingParams(presence_penalty=0.3), prompt=[0, 0, 0])
    # 1.0 .9 | .7 .9 | .7 .6 and so on
    assert [presence.sample(row) for _ in range(4)] == [0, 1, 0, 0]


def test_no_end_before_min_tokens() -> None:
    row = np.array([5, 4, 3, 1, 0], np.float32)
    sampler = Sampler(SamplingParams(min_tokens=2, stop_token_ids=(1, 10**9)), eos_token_ids=(0,))
    assert [sampler.sample(row) for _ in range(3)] == [2, 2, 0]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=50, top_p=0.9, min_p=0.1),
        SamplingParams(repetition_penalty=2.0, presence_penalty=1.0, min_tokens=3),
    ],
)
def test_the_callers_logits_stay_as_they_are(params: SamplingParams) -> None:
    row = normal_row(LARGE)
    before = row.copy()
    row.flags.writeable = False
    sampler = Sampler(params, prompt=[1, 2, 3], eos_token_ids=(4,))
    for _ in range(3):
        sampler.sample(row)
    np.testing.assert_array_equal(row, before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_row_is_an_error_and_not_a_token(value: float, temperature: float) -> None:
    row = normal_row(100)
    row[40] = value
    with pytest.raises(FloatingPointError, match="token 40"):
        Sampler(SamplingParams(temperature=temperature)).sample(row)


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["temperature", "min_p", "top_p", "repetition_penalty"], [-0.1, math.nan, math.inf, "1"]),
        *itertools.product(["presence_penalty", "frequency_penalty"], [-10.5, 11, math.nan, None, True]),
        *itertools.product(["top_p", "repetition_penalty"], [0, 10.5, None, True]),
        *itertools.product(["max_new_tokens", "top_k", "seed", "min_tokens", "logprobs"], [-2, 1.5, True, "3"]),
        ("temperature", 101),
        ("min_p", 1.1),
        ("max_new_tokens", 0),
        ("seed", 2**64),
        ("logprobs", 21),
        ("top_k", None),
        ("min_tokens", None),
        ("ignore_eos", 1),
        ("stop", ""),
        ("stop", [""]),
        ("stop", [3]),
        ("stop", 3),
        ("stop", ["x"] * 17),
        ("stop", "x" * 1025),
        ("stop_token_ids", 3),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["3"]),
        ("stop_token_ids", list(range(17))),
    ],
)
def test_absurd_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}"):
        SamplingParams(**{name: value})


def test_min_tokens_may_not_exceed_max_new_tokens() -> None:
    with pytest.raises(InputError, match=r"min_tokens=3 .*max_new_tokens=2"):
        SamplingParams(min_tokens=3, max_new_tokens=2)


def test_values_are_brought_into_one_form() -> None:
    given: dict[str, Any] = {"stop": "end", "stop_token_ids": [np.int64(4)], "top_k": -1, "temperature": np.float64(1)}
    params = SamplingParams(**given)
    assert (params.stop, params.stop_token_ids, params.top_k) == (("end",), (4,), 0)
    assert type(params.temperature) is float
    hash(params)


@pytest.mark.parametrize(
    ("params", "needs_logits"),
    [
        (SamplingParams(top_k=5, top_p=0.5, max_new_tokens=9, stop=("x",), ignore_eos=True), False),
        (SamplingParams(temperature=0.1), True),
        (SamplingParams(repetition_penalty=1.1), True),
        (SamplingParams(presence_penalty=-1), True),
        (SamplingParams(frequency_penalty=1), True),
        (SamplingParams(min_tokens=1), True),
        (SamplingParams(logprobs=0), True),
    ],
)
def test_when_the_graphs_own_choice_is_enough(params: SamplingParams, needs_logits: bool) -> None:
    assert params.needs_logits is needs_logits
