"""The sampler against transformers' logits processors, and what it does with rows that have no answer."""

from __future__ import annotations

import itertools
import math
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.sampling.params import ResolvedSamplingParams, SamplingParams
from pipelines.sampling.reference import kept_tokens, kth_largest
from pipelines.sampling.sampler import NoTokenLeftError, Sampler

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


def reference(row: Row, params: ResolvedSamplingParams) -> NDArray[np.float64]:
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [normal_row(1000), normal_row(LARGE, 4.0), peaked_row(LARGE)], ids=["1k", "40k", "peak"]
)
def test_the_distribution_is_that_of_transformers(row: Row) -> None:
    filters = itertools.product((0.5, 1.3), (0, 1, 50, len(row) // 2, 10 * len(row)), (0.3, 0.95, 1.0), (0.0, 0.1, 1.0))
    for temperature, top_k, top_p, min_p in filters:
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        ours, theirs = dense(row, params), reference(row, params.resolved())
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
        SamplingParams(temperature=0.7, logit_bias={5: 3.0}, allowed_token_ids=(5, 6, 7)),
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


class Uncopied(np.ndarray[Any, np.dtype[np.float32]]):
    def copy(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("copied")


@pytest.mark.parametrize(
    "params",
    [SamplingParams(), SamplingParams(temperature=0.7, logprobs=3), SamplingParams(presence_penalty=1.0)],
)
def test_a_row_that_nothing_changes_is_not_copied(params: SamplingParams) -> None:
    """A presence penalty has nothing to change before the first token."""
    Sampler(params, prompt=[1, 2]).sample(normal_row(100).view(Uncopied))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_drawn(temperature: float) -> None:
    row = normal_row(LARGE)
    params = SamplingParams(temperature=temperature, allowed_token_ids=(3, 70, 9_000), seed=1)
    drawn = {(sampler := Sampler(params)).sample(row)} | {sampler.sample(row) for _ in range(200)}
    assert drawn == ({3, 70, 9_000} if temperature else {max((3, 70, 9_000), key=lambda token: row[token])})


def test_draws_from_allowed_tokens_follow_the_distribution() -> None:
    row = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.99, allowed_token_ids=(0, 3), seed=5))
    counts = np.bincount([sampler.sample(row) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, [0.25, 0, 0, 0.75], atol=0.03)


def test_a_bias_bans_and_selects() -> None:
    row = np.array([9, 8, 7, 0], np.float32)
    assert Sampler(SamplingParams(logit_bias={0: -100})).sample(row) == 1
    assert Sampler(SamplingParams(logit_bias={3: 100})).sample(row) == 3


def test_an_open_parameter_counts_as_greedy() -> None:
    row = normal_row(100)
    assert Sampler(SamplingParams(top_k=5, top_p=0.9)).sample(row) == row.argmax()
    ids, weights = kept_tokens(row, SamplingParams(temperature=1.0))
    assert ids is None
    assert np.count_nonzero(weights) == 100


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masks_that_leave_no_token_are_an_error_of_the_request(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, allowed_token_ids=(4,), min_tokens=1)
    with pytest.raises(NoTokenLeftError, match="no token is left"):
        Sampler(params, eos_token_ids=(4,)).sample(normal_row(100))
    row = np.array([0, -np.inf], np.float32)
    with pytest.raises(InputError, match="no token is left"):
        Sampler(SamplingParams(temperature=temperature, allowed_token_ids=(1,))).sample(row)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_row_is_the_models_fault_whatever_the_masks(value: float) -> None:
    row = np.full(100, value, np.float32)
    for params in (SamplingParams(), SamplingParams(min_tokens=1), SamplingParams(allowed_token_ids=(1, 2))):
        with pytest.raises(FloatingPointError, match=r"logit of -?(nan|inf)"):
            Sampler(params, eos_token_ids=(4,)).sample(row)
    row = normal_row(100)
    row[40] = math.nan
    with pytest.raises(FloatingPointError, match="token 40"):
        Sampler(SamplingParams(allowed_token_ids=(1, 2))).sample(row)


def test_a_broken_row_is_the_models_fault_where_masks_leave_nothing() -> None:
    row = np.full(100, math.nan, np.float32)
    everything_masked = SamplingParams(min_tokens=1, allowed_token_ids=(4,))
    with pytest.raises(FloatingPointError):
        Sampler(everything_masked, eos_token_ids=(4,)).sample(row)


def test_a_refused_row_takes_no_random_number_and_no_count() -> None:
    params = SamplingParams(temperature=1.0, seed=3, min_tokens=2, frequency_penalty=0.5)
    one, other, row = Sampler(params), Sampler(params), normal_row(100)
    with pytest.raises(FloatingPointError):
        one.sample(np.full(100, np.nan, np.float32))
    assert [one.sample(row) for _ in range(20)] == [other.sample(row) for _ in range(20)]


def test_the_random_stream_is_fixed() -> None:
    """The draws of a seed: saved requests are repeated by it, so a change here needs a line in the changelog."""
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.95, seed=7))
    row = np.log(np.arange(1, 101, dtype=np.float32))
    uniform = np.random.default_rng(7).random(10)
    weights = np.arange(1, 101) * (np.arange(1, 101) > 21)
    expected = np.searchsorted(np.cumsum(weights), (1 - uniform) * weights.sum()).tolist()
    assert [sampler.sample(row) for _ in range(10)] == expected
