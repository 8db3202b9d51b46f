"""Sampling parameters: bounds, forms, the fields left open, the vocabulary."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from pipelines.errors import InputError
from pipelines.sampling.defaults import SamplingDefaults
from pipelines.sampling.params import OPEN_FIELDS, ResolvedSamplingParams, SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["temperature", "min_p", "top_p", "repetition_penalty"], [-0.1, math.nan, math.inf, "1"]),
        *itertools.product(["presence_penalty", "frequency_penalty"], [-10.5, 11, math.nan, None, True]),
        *itertools.product(["top_p", "repetition_penalty"], [0, 10.5, True]),
        *itertools.product(["max_new_tokens", "top_k", "seed", "min_tokens"], [-2, 1.5, True, "3"]),
        *itertools.product(["logprobs", "prompt_logprobs"], [-2, 1.5, True, "3", 21]),
        ("temperature", 101),
        ("min_p", 1.1),
        ("max_new_tokens", 0),
        ("seed", 2**64),
        ("temperature", 10**400),
        ("min_tokens", None),
        *itertools.product(["ignore_eos", "skip_special_tokens"], [1, None, "true"]),
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
        ("stop_token_ids", [2**31]),
        *itertools.product(["logit_bias"], [3, "ab", {"5": 1}, {True: 1}, {-1: 1}, {2**31: 1}, {5: 101}, {5: -101}]),
        *itertools.product(["logit_bias"], [{5: math.nan}, {5: None}, {5: "1"}, [5], [(5, 1, 2)], [(5, 1), (5, 2)]]),
        ("logit_bias", None),
        ("logit_bias", dict.fromkeys(range(1025), 1)),
        *itertools.product(["allowed_token_ids"], [3, "3", [], ["3"], [-1], [1.5], [True], [2**31]]),
        *itertools.product(["cache_salt"], [3, "", "x" * 1025, b"x", "\ud800"]),
    ],
)
def test_absurd_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}") as error:
        SamplingParams(**{name: value})
    str(error.value).encode()  # it can be printed
    assert len(str(error.value)) < 200


def test_min_tokens_may_not_exceed_max_new_tokens() -> None:
    with pytest.raises(InputError, match=r"min_tokens=3 .*max_new_tokens=2"):
        SamplingParams(min_tokens=3, max_new_tokens=2)


def test_values_are_brought_into_one_form() -> None:
    given: dict[str, Any] = {"stop": "end", "stop_token_ids": [np.int64(4)], "top_k": -1, "temperature": np.float64(1)}
    params = SamplingParams(**given)
    assert (params.stop, params.stop_token_ids, params.top_k) == (("end",), (4,), 0)
    assert type(params.temperature) is float
    hash(params)


def test_biases_and_allowed_tokens_are_brought_into_one_form() -> None:
    given: dict[str, Any] = {
        "logit_bias": {9: 1, np.int64(4): np.float32(-2)},
        "allowed_token_ids": [7, np.int64(3), 7],
    }
    params = SamplingParams(**given)
    assert params.logit_bias == ((4, -2.0), (9, 1.0))
    assert params.allowed_token_ids == (3, 7)
    assert params == SamplingParams(logit_bias=((9, 1.0), (4, -2.0)), allowed_token_ids=(3, 7)) == replace(params)
    assert {type(token_id) for token_id, _ in params.logit_bias} == {int}
    hash(params)


def test_a_caller_leaves_open_whatever_a_checkpoint_may_say() -> None:
    params = SamplingParams()
    assert [getattr(params, name) for name in OPEN_FIELDS] == [None] * 5
    assert params == SamplingParams(**dict.fromkeys(OPEN_FIELDS))  # type: ignore[arg-type]


def test_open_fields_are_greedy_without_defaults() -> None:
    resolved = SamplingParams(seed=3, stop=("x",), logit_bias={5: 1}).resolved()
    expected = ResolvedSamplingParams(seed=3, stop=("x",), logit_bias={5: 1})
    assert resolved == expected
    assert [getattr(resolved, name) for name in OPEN_FIELDS] == [0.0, 0, 1.0, 0.0, 1.0]


def test_defaults_fill_what_is_open_and_nothing_else() -> None:
    defaults = SamplingDefaults(temperature=0.6, top_k=20, min_p=0.1, repetition_penalty=1.05)
    resolved = SamplingParams(temperature=0.0, top_k=-1, min_p=0.2).resolved(defaults)
    assert [getattr(resolved, name) for name in OPEN_FIELDS] == [0.0, 0, 1.0, 0.2, 1.05]
    resolved = SamplingParams().resolved(defaults)
    assert [getattr(resolved, name) for name in OPEN_FIELDS] == [0.6, 20, 1.0, 0.1, 1.05]


def test_resolving_keeps_every_other_field() -> None:
    others: dict[str, Any] = {
        "max_new_tokens": 9,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 0,
        "stop": ("x",),
        "stop_token_ids": (3,),
        "ignore_eos": True,
        "min_tokens": 2,
        "logprobs": 0,
        "prompt_logprobs": 0,
        "logit_bias": ((1, 0.0),),
        "allowed_token_ids": (0, 1),
        "cache_salt": "tenant",
        "skip_special_tokens": False,
    }
    assert set(others) | set(OPEN_FIELDS) == {field.name for field in fields(SamplingParams)}
    resolved = SamplingParams(**others).resolved(SamplingDefaults(temperature=1.0))
    assert {name: getattr(resolved, name) for name in others} == others


def test_resolving_twice_changes_nothing() -> None:
    resolved = SamplingParams().resolved(SamplingDefaults(temperature=0.6))
    assert resolved.resolved(SamplingDefaults(temperature=0.9, top_k=5)) is resolved
    assert replace(resolved, seed=3).resolved() == SamplingParams(temperature=0.6, seed=3).resolved()


@pytest.mark.parametrize("name", OPEN_FIELDS)
def test_resolved_parameters_leave_nothing_open(name: str) -> None:
    given: dict[str, Any] = {name: None}
    with pytest.raises(InputError, match=f"^{name}"):
        ResolvedSamplingParams(**given)


@pytest.mark.parametrize(
    ("name", "value"), [("logit_bias", {3: 1, 256: 1}), ("allowed_token_ids", [256, 3]), ("stop_token_ids", [256])]
)
def test_token_ids_outside_the_vocabulary_are_refused_by_name(name: str, value: Any) -> None:
    params = SamplingParams(**{name: value})
    params.check_vocabulary(257)
    with pytest.raises(InputError, match=f"^{name}: token id 256 is outside the vocabulary of 256"):
        params.check_vocabulary(256)
    SamplingParams().check_vocabulary(1)


def test_the_command_line_does_not_wait_for_numpy() -> None:
    code = """
import sys, pipelines.sampling.params, pipelines.sampling.defaults
assert not {"numpy", "max", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


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
        (SamplingParams(logit_bias={3: 1}), True),
        (SamplingParams(allowed_token_ids=(0,)), True),
        (SamplingParams(prompt_logprobs=0, cache_salt="x", skip_special_tokens=False), False),
        (SamplingParams(temperature=0, repetition_penalty=1), False),
    ],
)
def test_when_the_graphs_own_choice_is_enough(params: SamplingParams, needs_logits: bool) -> None:
    assert params.needs_logits is needs_logits
    assert params.resolved().needs_logits is needs_logits
