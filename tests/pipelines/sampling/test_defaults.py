"""Sampling defaults of published checkpoints, and of files that hold nonsense."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import InputError
from pipelines.sampling.defaults import SamplingDefaults
from pipelines.sampling.params import OPEN_FIELDS, SamplingParams

# Published files, of Qwen3-0.6B, Qwen3-4B-Instruct-2507, gemma-3-1b-it, gemma-4-E2B-it, Llama-3.2-1B-Instruct.
QWEN: dict[str, Any] = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "transformers_version": "4.51.0",
}
QWEN_INSTRUCT = QWEN | {"temperature": 0.7, "top_p": 0.8}
GEMMA_3: dict[str, Any] = {
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "do_sample": True,
    "eos_token_id": [1, 106],
    "pad_token_id": 0,
    "top_k": 64,
    "top_p": 0.95,
    "transformers_version": "4.50.0.dev0",
}
GEMMA_4: dict[str, Any] = {
    "bos_token_id": 2,
    "do_sample": True,
    "eos_token_id": [1, 106, 50],
    "pad_token_id": 0,
    "temperature": 1.0,
    "top_k": 64,
    "top_p": 0.95,
    "transformers_version": "5.5.0.dev0",
}
LLAMA: dict[str, Any] = {
    "bos_token_id": 128000,
    "do_sample": True,
    "eos_token_id": [128001, 128008, 128009],
    "temperature": 0.6,
    "top_p": 0.9,
    "transformers_version": "4.45.0.dev0",
}
CONFIGS = Path(__file__).parents[2] / "configs"

read = SamplingDefaults.from_generation_config


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (QWEN, SamplingDefaults(temperature=0.6, top_k=20, top_p=0.95)),
        (QWEN_INSTRUCT, SamplingDefaults(temperature=0.7, top_k=20, top_p=0.8)),
        (GEMMA_3, SamplingDefaults(temperature=1.0, top_k=64, top_p=0.95)),
        (GEMMA_4, SamplingDefaults(temperature=1.0, top_k=64, top_p=0.95)),
        (LLAMA, SamplingDefaults(temperature=0.6, top_p=0.9)),
    ],
)
def test_published_checkpoints(config: dict[str, Any], expected: SamplingDefaults) -> None:
    assert read(config) == expected


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/generation_config.json")), ids=lambda path: path.parent.name)
def test_the_published_files_of_this_repository(path: Path) -> None:
    config = json.loads(path.read_text())
    defaults = read(config)
    assert defaults.temperature == config.get("temperature", 1.0)
    assert {name: getattr(defaults, name) for name in OPEN_FIELDS if name in config}.items() <= config.items()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, SamplingDefaults()),
        ({"eos_token_id": 1, "max_length": 20, "_from_model_config": True}, SamplingDefaults()),
        (dict.fromkeys((*OPEN_FIELDS, "do_sample")), SamplingDefaults()),
        ({"top_k": 5}, SamplingDefaults(top_k=5)),
        ({"temperature": 1, "top_k": -1}, SamplingDefaults(temperature=1.0, top_k=0)),
        ({"do_sample": True}, SamplingDefaults(temperature=1.0)),
        ({"do_sample": True, "temperature": None}, SamplingDefaults(temperature=1.0)),
        ({"do_sample": True, "temperature": 0.0}, SamplingDefaults(temperature=0.0)),
        ({"do_sample": False}, SamplingDefaults(temperature=0.0)),
        ({"do_sample": False, "temperature": 0.7, "top_k": 5}, SamplingDefaults(temperature=0.0, top_k=5)),
        ({"min_p": 0.1, "repetition_penalty": 1.05}, SamplingDefaults(min_p=0.1, repetition_penalty=1.05)),
    ],
)
def test_what_a_file_says(config: dict[str, Any], expected: SamplingDefaults) -> None:
    assert read(config) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *itertools.product(OPEN_FIELDS, ["1", True, math.nan, [1], -2]),
        ("temperature", 101),
        ("top_p", 1.1),
        ("top_p", 0),
        ("top_k", 2.5),
        ("do_sample", "true"),
        ("do_sample", 1),
    ],
)
@pytest.mark.parametrize("do_sample", [None, False, True])
def test_nonsense_names_file_and_field(field: str, value: Any, do_sample: bool | None) -> None:
    with pytest.raises(InputError, match=rf"^generation_config\.json: {field}=") as error:
        read({"do_sample": do_sample, field: value})
    assert "\n" not in str(error.value)


def test_given_in_python_they_have_the_same_bounds() -> None:
    with pytest.raises(InputError, match=r"^top_p="):
        SamplingDefaults(top_p=2.0)


@pytest.mark.parametrize(
    ("defaults", "params", "expected"),
    [
        (read(QWEN), SamplingParams(), "temperature 0.6, top_k 20, top_p 0.95"),
        (read(QWEN), SamplingParams(temperature=0.2, top_p=0.5), "top_k 20"),
        (read(QWEN), SamplingParams(temperature=0.0), ""),
        (read(GEMMA_3), SamplingParams(), "temperature 1.0, top_k 64, top_p 0.95"),
        (SamplingDefaults(), SamplingParams(), ""),
        (SamplingDefaults(top_k=20), SamplingParams(), ""),
        (SamplingDefaults(temperature=0.0, top_k=20), SamplingParams(), ""),
        (
            SamplingDefaults(temperature=0.6, top_k=0, top_p=1.0, repetition_penalty=1.0),
            SamplingParams(),
            "temperature 0.6",
        ),
        (SamplingDefaults(0.6, 20, repetition_penalty=1.05), SamplingParams(temperature=0), "repetition_penalty 1.05"),
        (SamplingDefaults(temperature=0.6), SamplingParams(temperature=0.6), ""),
        (SamplingDefaults(temperature=0.6), SamplingParams().resolved(), ""),
    ],
)
def test_what_a_request_takes(defaults: SamplingDefaults, params: SamplingParams, expected: str) -> None:
    assert defaults.describe(params) == expected
