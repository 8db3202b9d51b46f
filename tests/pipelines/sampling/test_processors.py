"""Each logits processor alone, and the list that parameters need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.sampling.params import SamplingParams
from pipelines.sampling.processors import (
    AllowedTokens,
    LogitBias,
    LogitsProcessor,
    MinTokens,
    PresenceFrequencyPenalty,
    RepetitionPenalty,
    logits_processors,
)

Row = NDArray[np.float32]


def normal_row(size: int, spread: float = 1.0, seed: int = 0) -> Row:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def applied(processor: LogitsProcessor, row: Row) -> Row:
    """The row as the processor leaves it; where it says that it is not active, it changes nothing."""
    changed = row.copy()
    processor.apply(changed)
    assert processor.is_active or np.array_equal(changed, row)
    return changed


def masked(row: Row, *allowed: int) -> Row:
    expected = np.full_like(row, -np.inf)
    expected[list(allowed)] = row[list(allowed)]
    return expected


def test_repetition_penalty_is_that_of_transformers() -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    for penalty in (0.8, 1.1, 2.0):
        tokens = [3, 3, 9, 17]
        processor = RepetitionPenalty(penalty, tokens)
        for token in (9, 40, 40, 2):
            row = normal_row(50, 3.0, seed=token)
            scores = RepetitionPenaltyLogitsProcessor(penalty)(
                torch.tensor([tokens]), torch.from_numpy(row.copy())[None]
            )
            np.testing.assert_array_equal(applied(processor, row), scores[0].numpy())
            processor.accept(token)
            tokens.append(token)


def test_repetition_penalty_has_nothing_to_do_before_any_token() -> None:
    processor = RepetitionPenalty(1.5)
    assert not processor.is_active
    processor.accept(3)
    assert processor.is_active


def test_presence_counts_once_and_frequency_each_time() -> None:
    presence, frequency = PresenceFrequencyPenalty(0.5, 0.0), PresenceFrequencyPenalty(0.0, 0.25)
    both = PresenceFrequencyPenalty(0.5, 0.25)
    for processor in (presence, frequency, both):
        assert not processor.is_active
        for token in (1, 3, 1):
            processor.accept(token)
        assert processor.is_active
    row = np.zeros(4, np.float32)
    np.testing.assert_array_equal(applied(presence, row), [0, -0.5, 0, -0.5])
    np.testing.assert_array_equal(applied(frequency, row), [0, -0.5, 0, -0.25])
    np.testing.assert_array_equal(applied(both, row), [0, -1.0, 0, -0.75])


def penalized_at_once(row: Row, counts: dict[int, int], repetition: float, presence: float, frequency: float) -> Row:
    """The arithmetic that the penalties had before they were two processors."""
    ids = np.fromiter(counts.keys(), np.int64, len(counts))
    times = np.fromiter(counts.values(), np.float32, len(counts))
    seen = row[ids]
    seen = np.where(seen < 0, seen * repetition, seen / repetition)
    result = row.copy()
    result[ids] = seen - frequency * times - presence * (times > 0)
    return result


@pytest.mark.parametrize("repetition", [1.0, 0.7, 1.1, 3.3])
@pytest.mark.parametrize(("presence", "frequency"), [(0.0, 0.0), (0.3, 0.0), (0.0, -0.7), (1.1, 0.13)])
def test_penalties_in_turn_are_bit_for_bit_the_penalties_at_once(
    repetition: float, presence: float, frequency: float
) -> None:
    prompt = [] if repetition == 1.0 else [1, 5, 5, 60]
    params = SamplingParams(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    processors, counts = logits_processors(params, prompt), dict.fromkeys(prompt, 0)
    tokens = np.random.default_rng(1).integers(0, 100, 200).tolist()
    for step, token in enumerate(tokens):
        row = normal_row(100, 5.0, seed=step)
        result = row.copy()
        for processor in processors:
            processor.apply(result)
            processor.accept(token)
        np.testing.assert_array_equal(result, penalized_at_once(row, counts, repetition, presence, frequency))
        counts[token] = counts.get(token, 0) + 1


def test_min_tokens_masks_what_would_end_the_request() -> None:
    processor, row = MinTokens(2, {1, 3, 10**9}), normal_row(5)
    for _ in range(2):
        assert processor.is_active
        np.testing.assert_array_equal(applied(processor, row), masked(row, 0, 2, 4))
        processor.accept(0)
    assert not processor.is_active


def test_a_bias_is_added_to_its_token_at_every_step() -> None:
    processor, row = LogitBias({3: 1.5, 0: -100.0}), normal_row(5)
    for _ in range(2):
        assert processor.is_active
        np.testing.assert_array_equal(applied(processor, row), row + np.array([-100, 0, 0, 1.5, 0], np.float32))
        processor.accept(3)


def test_a_bias_outside_the_row_is_not_ignored() -> None:
    with pytest.raises(IndexError):
        LogitBias({5: 1.0}).apply(normal_row(5))


def bits(size: int, *allowed: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, np.bool_)
    mask[list(allowed)] = True
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        bits(50, 0, 31, 33, 49),
        np.packbits(bits(50, 0, 31, 33, 49), bitorder="little"),
        np.packbits(bits(64, 0, 31, 33, 49), bitorder="little").view(np.int32),
        np.packbits(bits(64, 0, 31, 33, 49, 50, 63), bitorder="little").view(np.int32),
        bits(99, 0, 31, 33, 49, 98),
    ],
    ids=["bool", "bytes", "int32", "int32 with padding set", "longer"],
)
def test_masks_of_every_form(mask: NDArray[Any]) -> None:
    row = normal_row(50)
    np.testing.assert_array_equal(applied(AllowedTokens(mask), row), masked(row, 0, 31, 33, 49))


def test_tokens_past_the_end_of_a_mask_are_not_allowed() -> None:
    row = normal_row(50)
    np.testing.assert_array_equal(applied(AllowedTokens(bits(10, 3)), row), masked(row, 3))
    np.testing.assert_array_equal(applied(AllowedTokens(np.array([0b1000], np.uint8)), row), masked(row, 3))


def test_a_mask_is_taken_over_and_may_be_used_again() -> None:
    mask, row = bits(50, 3), normal_row(50)
    processor = AllowedTokens(mask)
    mask[:] = False
    np.testing.assert_array_equal(applied(processor, row), masked(row, 3))


def test_static_ids_stay_allowed() -> None:
    processor, row = AllowedTokens.from_ids((2, 7)), normal_row(50)
    for _ in range(2):
        np.testing.assert_array_equal(applied(processor, row), masked(row, 2, 7))
        processor.accept(7)


def test_a_grammar_replaces_the_mask_before_each_token() -> None:
    class Counting(AllowedTokens):
        """Allows the token that follows the last one, and everything after 3."""

        def accept(self, token: int) -> None:
            self.set_mask(None if token == 3 else bits(5, token + 1))

    processor, row = Counting(bits(5, 1)), normal_row(5)
    for token in (1, 2, 3):
        np.testing.assert_array_equal(applied(processor, row), masked(row, token))
        processor.accept(token)
    assert not processor.is_active
    np.testing.assert_array_equal(applied(processor, row), row)


@pytest.mark.parametrize(
    ("params", "kinds"),
    [
        (SamplingParams(), []),
        (SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, stop_token_ids=(3,), logprobs=2), []),
        (SamplingParams(repetition_penalty=1.1), [RepetitionPenalty]),
        (SamplingParams(presence_penalty=1.0), [PresenceFrequencyPenalty]),
        (SamplingParams(frequency_penalty=1.0), [PresenceFrequencyPenalty]),
        (SamplingParams(logit_bias={3: 1}), [LogitBias]),
        (SamplingParams(min_tokens=1), [MinTokens]),
        (SamplingParams(allowed_token_ids=(3,)), [AllowedTokens]),
        (
            SamplingParams(
                repetition_penalty=1.1, presence_penalty=1, logit_bias={3: 1}, min_tokens=1, allowed_token_ids=(3,)
            ),
            [RepetitionPenalty, PresenceFrequencyPenalty, LogitBias, MinTokens, AllowedTokens],
        ),
    ],
)
def test_only_the_processors_that_are_needed_in_their_order(params: SamplingParams, kinds: list[type]) -> None:
    assert [type(processor) for processor in logits_processors(params, [1, 2], (4,))] == kinds
    assert bool(kinds) is (logits_processors(params.resolved()) != [])


def test_a_bias_is_not_scaled_by_the_penalty_and_revives_no_masked_token() -> None:
    params = SamplingParams(
        repetition_penalty=2.0, logit_bias={0: 3.0, 1: 100.0, 2: 100.0}, min_tokens=1, allowed_token_ids=(0, 1)
    )
    row = np.array([-1, 1, 1, 1], np.float32)
    for processor in logits_processors(params, [0], (1,)):
        processor.apply(row)
    np.testing.assert_array_equal(row, [-1 * 2 + 3, -np.inf, -np.inf, -np.inf])
