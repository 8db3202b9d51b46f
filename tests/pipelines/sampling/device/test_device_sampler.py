"""The device's sampler, on the CPU, against the host's: the same tokens for the same random numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from device_samplers import VOCAB_SIZE, cpu_sampler
from max.driver import Buffer
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.sampling.device.rows import DeviceRow
from pipelines.sampling.device.sampler import DeviceSampler, RowLogProbs
from pipelines.sampling.log_probabilities import TokenLogProbs, log_probabilities
from pipelines.sampling.native import Cuts
from pipelines.sampling.params import SamplingParams
from pipelines.sampling.processors import AllowedTokens
from pipelines.sampling.reference import kept_tokens
from pipelines.sampling.sampler import Choice, NoTokenLeftError, Sampler, sample_rows

pytestmark = pytest.mark.compiles

EDGE = 2.0**-20
"""Distance from the border between two tokens, in shares of the sum, at which both samplers must agree.

Weights differ by the error of e ** x in float32, a few times 2 ** -24; sums are in float64.
"""

Row = NDArray[np.float32]


def normal_row(size: int, spread: float = 1.0, seed: int = 0) -> Row:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def coarse_row(size: int, seed: int = 0) -> Row:
    """As from bfloat16: many logits are equal."""
    return (np.round(normal_row(size, 2.0, seed) * 8) / 8).astype(np.float32)


def masked_row(size: int) -> Row:
    row = normal_row(size, 3.0)
    row[np.arange(size) % 7 != 3] = -np.inf
    return row


def rows_of(size: int) -> dict[str, Row]:
    return {
        "normal": normal_row(size, 2.0),
        "coarse": coarse_row(size),
        "positive": normal_row(size) + 30,
        "negative": normal_row(size) - 30,
        "masked": masked_row(size),
        "equal": np.zeros(size, np.float32),
        "small": normal_row(size, 1e-30),
        "large": normal_row(size, 1e37),
    }


def choose(
    sampler: DeviceSampler, logits: NDArray[np.float32], rows: Sequence[DeviceRow]
) -> tuple[list[Choice], list[RowLogProbs]]:
    return sampler.launch(Buffer.from_numpy(np.ascontiguousarray(logits)), rows).collect()


def places(row: Row, params: SamplingParams, most: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Random numbers in the middle of kept tokens' shares and close to their borders, and the tokens they must give."""
    ids, weights = kept_tokens(row, params)
    shares = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    kept = np.flatnonzero(shares > 0)
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, most).astype(int))]
    ends = np.cumsum(shares)
    starts = ends - shares
    wide = kept[shares[kept] > 4 * EDGE]
    targets = np.concatenate([(starts[kept] + ends[kept]) / 2, starts[wide] + EDGE, ends[wide] - EDGE])
    tokens = np.concatenate([kept, wide, wide])
    is_clear = (targets > starts[tokens] + EDGE / 2) & (targets < ends[tokens] - EDGE / 2)
    tokens = tokens[is_clear]
    return 1.0 - targets[is_clear], tokens if ids is None else ids[tokens]


def check_places(sampler: DeviceSampler, row: Row, all_params: Sequence[SamplingParams], most: int) -> None:
    """All parameters in one batch, so that each row has others than its neighbours."""
    found = [(params, *places(row, params, most)) for params in all_params]
    wanted = [(params, u, token) for params, us, tokens in found for u, token in zip(us, tokens, strict=True)]
    assert len(wanted) >= len(all_params)
    np.random.default_rng(0).shuffle(wanted)  # type: ignore[arg-type]
    rows = [DeviceRow(Cuts.of(params.resolved()), uniform) for params, uniform, _ in wanted]
    choices, _ = choose(sampler, np.tile(row, (len(rows), 1)), rows)
    wrong = [(*each, choice) for each, choice in zip(wanted, choices, strict=True) if choice != each[2]]
    assert not wrong, f"{len(wrong)} of {len(wanted)}: {wrong[:3]}"


@pytest.mark.parametrize("name", rows_of(2))
def test_every_kept_token_has_the_hosts_share(name: str) -> None:
    """Random numbers along all shares give the tokens of the reference."""
    cuts = itertools.product((0, 1, 7, 65, 500, 10_000), (0.5, 1.3), (0.3, 0.95, 1.0), (0.0, 0.1))
    all_params = [SamplingParams(top_k=k, temperature=t, top_p=top_p, min_p=min_p) for k, t, top_p, min_p in cuts]
    check_places(cpu_sampler(), rows_of(VOCAB_SIZE)[name], all_params, 7)


@pytest.mark.parametrize("cuts", [{}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05}])
def test_searches_that_no_row_needs_are_left_out(cuts: dict[str, float]) -> None:
    check_places(cpu_sampler(), coarse_row(VOCAB_SIZE), [SamplingParams(temperature=0.8, **cuts)], 40)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 100.0])
def test_extreme_temperatures(temperature: float) -> None:
    cuts: list[dict[str, float]] = [{}, {"top_p": 0.9}, {"top_k": 5}]
    all_params = [SamplingParams(temperature=temperature, **each) for each in cuts]  # type: ignore[arg-type]
    check_places(cpu_sampler(), rows_of(VOCAB_SIZE)["normal"], all_params, 20)


def test_draws_follow_the_distribution() -> None:
    """By chi-square: its deviation is sqrt(2 n) around n, the tokens less one, and five of them are too many."""
    params, num_draws, row = SamplingParams(temperature=0.7, top_k=40, top_p=0.9), 20_000, rows_of(VOCAB_SIZE)["normal"]
    ids, weights = kept_tokens(row, params)
    assert ids is not None
    rows = [DeviceRow(Cuts.of(params.resolved()), u) for u in np.random.default_rng(3).random(num_draws)]
    logits = np.tile(row, (1000, 1))
    drawn = [token for i in range(0, num_draws, 1000) for token in choose(cpu_sampler(), logits, rows[i : i + 1000])[0]]
    kept = weights > 0
    expected = weights[kept] / weights[kept].sum() * num_draws
    counts = np.array([drawn.count(int(token)) for token in ids[kept]])
    assert counts.sum() == num_draws
    freedom = int(kept.sum()) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * math.sqrt(2 * freedom)


def random_params(rng: np.random.Generator) -> SamplingParams:
    """Any parameters together, one in four greedy."""
    fields: dict[str, object] = {"seed": int(rng.integers(2**32))}
    if rng.random() < 0.75:
        fields["temperature"] = float(rng.uniform(0.3, 1.5))
    choices: dict[str, object] = {
        "top_k": int(rng.integers(1, 200)),
        "top_p": float(rng.uniform(0.2, 1.0)),
        "min_p": float(rng.uniform(0.0, 0.2)),
        "repetition_penalty": float(rng.uniform(0.7, 1.5)),
        "presence_penalty": float(rng.uniform(-1, 1)),
        "frequency_penalty": float(rng.uniform(-1, 1)),
        "logit_bias": {int(i): float(rng.uniform(-5, 5)) for i in rng.integers(0, VOCAB_SIZE, 4)},
        "allowed_token_ids": tuple(int(i) for i in rng.integers(0, VOCAB_SIZE, 300)),
        "min_tokens": 3,
        "logprobs": int(rng.integers(0, 21)),
    }
    return SamplingParams(**fields, **{name: each for name, each in choices.items() if rng.random() < 0.35})  # type: ignore[arg-type]


def random_logits(rng: np.random.Generator, num_rows: int) -> NDArray[np.float32]:
    """Rows of all kinds, one in eight broken."""
    kinds = list(rows_of(VOCAB_SIZE).values())[:6]
    logits = np.stack([kinds[rng.integers(len(kinds))][rng.permutation(VOCAB_SIZE)] for _ in range(num_rows)])
    for row in logits:
        if rng.random() < 0.125:
            row[rng.integers(VOCAB_SIZE)] = rng.choice([math.nan, math.inf])
    return logits


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8, 17])
def test_a_batch_has_the_texts_of_the_host(num_rows: int) -> None:
    """Step by step, with penalties that depend on the text so far: processed logits, tokens, log probabilities."""
    rng, sampler = np.random.default_rng(num_rows), cpu_sampler()
    params = [random_params(rng) for _ in range(num_rows)]
    ours, theirs = (
        [Sampler(each, prompt=[7, 7, 8, 400, VOCAB_SIZE - 1], eos_token_ids=(998,)) for each in params]
        for _ in range(2)
    )
    for _ in range(12):
        logits = random_logits(rng, num_rows)
        rows = [DeviceRow.of(each, VOCAB_SIZE, p.logprobs) for each, p in zip(ours, params, strict=True)]
        launched = sampler.launch(Buffer.from_numpy(logits.copy()), rows)
        for i, each in enumerate(theirs):
            np.testing.assert_array_equal(launched.processed.to_numpy()[i], each.processed(logits[i]))
        choices, log_probs = launched.collect()
        expected = sample_rows(list(logits), theirs)
        assert list(map(repr, choices)) == list(map(repr, expected))
        for i, choice in enumerate(expected):
            check_log_probs(log_probs[i], logits[i], choice, params[i].logprobs)
            if isinstance(choice, int):
                ours[i].take(choice)
                theirs[i].take(choice)


def check_log_probs(found: RowLogProbs, row: Row, token: Choice, num_top: int | None) -> None:
    """The sum of e ** x has the error of float32 exponentials, and the logarithm turns it into an absolute one."""
    if num_top is None:
        assert found is None
    elif not math.isfinite(row.max()):
        assert isinstance(found, FloatingPointError)
    elif isinstance(token, int):
        assert isinstance(found, TokenLogProbs)
        expected = log_probabilities(row, token, num_top)
        assert (found.token_id, [i for i, _ in found.top]) == (token, [i for i, _ in expected.top])
        np.testing.assert_allclose(found.logprob, expected.logprob, rtol=0, atol=1e-6)
        np.testing.assert_allclose([x for _, x in found.top], [x for _, x in expected.top], rtol=0, atol=1e-6)


def test_log_probabilities_of_equal_logits_list_the_lowest_ids() -> None:
    rows = [coarse_row(VOCAB_SIZE), np.zeros(VOCAB_SIZE, np.float32), masked_row(VOCAB_SIZE), masked_row(VOCAB_SIZE)]
    rows[2][20:] = -np.inf  # fewer than twenty are possible
    choices, found = choose(cpu_sampler(), np.stack(rows), [DeviceRow(num_top=num) for num in (20, 3, 20, 0)])
    for row, choice, num_top, entry in zip(rows, choices, (20, 3, 20, 0), found, strict=True):
        check_log_probs(entry, row, choice, num_top)


@pytest.mark.parametrize(
    "others", [[], [SamplingParams(temperature=1.0)], [SamplingParams(temperature=1.0, top_p=0.5)]]
)
def test_greedy_takes_the_lowest_of_equal_ids(others: list[SamplingParams]) -> None:
    """Also beside a row that is sampled."""
    rows = [DeviceRow(), *(DeviceRow(Cuts.of(each.resolved()), 0.5) for each in others), DeviceRow()]
    logits = np.full((len(rows), VOCAB_SIZE), -1, np.float32)
    logits[:, [17, 400, VOCAB_SIZE - 1]] = 3
    logits[-1, 17] = -2
    choices, _ = choose(cpu_sampler(), logits, rows)
    assert (choices[0], choices[-1]) == (17, 400)


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0, "top_p": 0.5}]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_row_is_an_error_and_the_others_have_tokens(params: dict[str, float], value: float) -> None:
    broken = np.full(VOCAB_SIZE, value, np.float32) if value == -math.inf else normal_row(VOCAB_SIZE)
    broken[40] = value
    masked = SamplingParams(**params, allowed_token_ids=(1, 2))  # type: ignore[arg-type]
    samplers = [Sampler(each) for each in (SamplingParams(**params), masked, SamplingParams(**params))]  # type: ignore[arg-type]
    logits = np.stack([broken, broken, normal_row(VOCAB_SIZE)])
    launched = cpu_sampler().launch(
        Buffer.from_numpy(logits.copy()), [DeviceRow.of(sampler, VOCAB_SIZE, 1) for sampler in samplers]
    )
    choices, log_probs = launched.collect()
    assert [repr(choice) for choice in choices] == [repr(choice) for choice in sample_rows(list(logits), samplers)]
    assert isinstance(choices[2], int) and isinstance(log_probs[0], FloatingPointError)
    tokens = launched.tokens.to_numpy()
    assert ((tokens >= 0) & (tokens < VOCAB_SIZE)).all(), "the next step runs with them"


def test_masks_that_leave_no_token_are_an_error_of_the_request() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0, allowed_token_ids=(4,), min_tokens=1), eos_token_ids=(4,))
    choices, _ = choose(cpu_sampler(), normal_row(VOCAB_SIZE)[None], [DeviceRow.of(sampler, VOCAB_SIZE)])
    assert isinstance(choices[0], NoTokenLeftError)


def test_a_packed_mask_shorter_than_the_vocabulary_allows_nothing_past_its_end() -> None:
    row = normal_row(VOCAB_SIZE)
    row[500:] += 10
    mask = np.array([0b1010, 0, 1 << 31], np.uint32).view(np.int32)
    sampler = Sampler(SamplingParams(), constraint=AllowedTokens(mask))
    choices, _ = choose(cpu_sampler(), row[None], [DeviceRow.of(sampler, VOCAB_SIZE)])
    assert choices == [max((1, 3, 95), key=lambda token: row[token])]


def test_an_error_of_a_processor_is_the_choice_of_its_row() -> None:
    class Failing(AllowedTokens):
        is_active = True

        def add_to(self, changes: object) -> None:
            raise InputError("the grammar is at its end")

    rows = [DeviceRow.of(Sampler(SamplingParams(), constraint=Failing()), VOCAB_SIZE), DeviceRow()]
    choices, _ = choose(cpu_sampler(), np.stack([normal_row(VOCAB_SIZE)] * 2), rows)
    assert isinstance(choices[0], InputError)
    assert choices[1] == int(normal_row(VOCAB_SIZE).argmax())


def test_tokens_of_the_next_step_are_replaced_in_place_of_the_pending_ones() -> None:
    sampler, logits = cpu_sampler(), np.stack([normal_row(VOCAB_SIZE, seed=i) for i in range(3)])
    sampled = sampler.launch(Buffer.from_numpy(logits.copy()), [DeviceRow()] * 3)
    tokens = Buffer.from_numpy(np.arange(5000, 5006))
    found = sampler.insert(tokens, sampled, [4, 1], [0, 2]).to_numpy().tolist()
    assert found == [5000, int(logits[2].argmax()), 5002, 5003, int(logits[0].argmax()), 5005]


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 10\) are not 1 rows of 1003"):
        cpu_sampler().launch(Buffer.from_numpy(np.zeros((1, 10), np.float32)), [DeviceRow()])
