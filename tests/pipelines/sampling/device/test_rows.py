"""Rows of a step as the device's sampler takes them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipelines.sampling.changes import LogitChanges
from pipelines.sampling.device.rows import DeviceRow, changes_of, sampling_of
from pipelines.sampling.native import Cuts
from pipelines.sampling.params import SamplingParams
from pipelines.sampling.sampler import Sampler

V = 100
NUM_BYTES = 13


def row(**params: float) -> DeviceRow:
    return DeviceRow(Cuts.of(SamplingParams(temperature=1.0, **params).resolved()), 0.25)  # type: ignore[arg-type]


def unpacked(bits: NDArray[np.uint8]) -> list[int]:
    return np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()


def test_greedy_rows_alone_draw_nothing() -> None:
    assert sampling_of([DeviceRow(), DeviceRow()], V) is None


def test_cuts_that_keep_all_are_infinite_and_need_no_search() -> None:
    found = sampling_of([row(), row(top_k=V), row(top_k=10**12, min_p=0.5), row(top_p=1.0)], V)
    assert found is not None and not found.has_top_k and not found.has_top_p
    assert np.isinf(found.params_BC[:, 1:3]).all()
    assert found.params_BC[:, [0, 3, 4]].tolist() == [[1, 0, 0.25], [1, 0, 0.25], [1, 0.5, 0.25], [1, 0, 0.25]]


def test_a_search_is_made_if_one_row_needs_it() -> None:
    found = sampling_of([row(), row(top_k=5), row(top_p=0.5)], V)
    assert found is not None and found.has_top_k and found.has_top_p
    assert found.params_BC[:, 1:3].tolist() == [[math.inf, math.inf], [5, math.inf], [math.inf, 0.5]]


def test_a_greedy_row_beside_others_takes_the_first_of_its_largest() -> None:
    found = sampling_of([row(), DeviceRow()], V)
    assert found is not None and found.has_top_k and not found.has_top_p
    temperature, top_k, top_p, min_p, uniform = found.params_BC[1]
    assert (temperature, top_k, top_p, min_p) == (1.0, 1, math.inf, 0.0)
    assert 0 < (1.0 - uniform) * V < 1, "the target is above 0, and the first weight of 1 reaches it"


def test_rows_that_nothing_changes_need_no_arrays() -> None:
    rows = [DeviceRow(), DeviceRow.of(Sampler(SamplingParams(presence_penalty=1.0)), V)]  # no token so far
    assert changes_of(rows, NUM_BYTES) is None


def test_changes_of_rows() -> None:
    samplers = [
        Sampler(SamplingParams(logit_bias={99: 1.5, 2: -1.0})),
        Sampler(SamplingParams(repetition_penalty=2.0), prompt=[3, 97]),
        Sampler(SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={4: 2.0})),
        Sampler(SamplingParams(allowed_token_ids=(5, 98))),
    ]
    for token in (3, 5, 3):
        samplers[2].accept(token)
    samplers[1].accept(8)
    found = changes_of([DeviceRow(), *(DeviceRow.of(sampler, V) for sampler in samplers)], NUM_BYTES)
    assert found is not None
    assert found.repetition_B.tolist() == [1.0, 1.0, 2.0, 1.0, 1.0]
    seen, allowed = ([unpacked(found.masks_MW[number]) for number in each] for each in (found.seen_B, found.allowed_B))
    everything = list(range(8 * NUM_BYTES))
    assert seen == [[], [], [3, 8, 97], [], []]
    assert allowed == [everything, everything, everything, everything, [5, 98]]
    assert len(found.masks_MW) == 4, "a mask is there once, whatever the number of rows"
    edits = dict(zip(map(tuple, found.edits_E2.tolist()), found.amounts_E3.tolist(), strict=True))
    assert edits == {
        (1, 2): [0, 0, -1.0],
        (1, 99): [0, 0, 1.5],
        (3, 3): [0.5, 0.5, 0],
        (3, 4): [0, 0, 2.0],
        (3, 5): [0.25, 0.5, 0],
    }


def test_a_step_without_edits_has_one_that_changes_nothing() -> None:
    found = changes_of([DeviceRow.of(Sampler(SamplingParams(allowed_token_ids=(5,))), V)], NUM_BYTES)
    assert found is not None
    assert found.edits_E2.tolist() == [[0, 0]] and found.amounts_E3.tolist() == [[0, 0, 0]]


def test_seen_tokens_are_added_to_bits_that_exist_already() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), prompt=[3])
    for token in (3, 99, 0):
        assert sampler.changes(V) is not None
        sampler.accept(token)
    changes = sampler.changes(V)
    assert changes is not None and changes.seen is not None
    assert unpacked(changes.seen) == [0, 3, 99]


def test_masks_and_bans_hold_together() -> None:
    changes = LogitChanges(V)
    changes.ban([5, 6, 10**6])
    changes.restrict(np.arange(V) < 20)
    changes.restrict(np.array([0b1111_0000], np.int32))
    assert changes.allowed is not None
    assert unpacked(changes.allowed) == [4, 7]


def test_describing_a_row_takes_no_random_number() -> None:
    one, other = (Sampler(SamplingParams(temperature=1.0, seed=3)) for _ in range(2))
    assert DeviceRow.of(one, V).uniform == DeviceRow.of(one, V).uniform == other.next_uniform()
    one.take(3)
    other.take(3)
    assert DeviceRow.of(one, V).uniform == other.next_uniform()
