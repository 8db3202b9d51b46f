"""Gemma 3's classes beside MAX's API page: docs/contract.md tells the truth, and what it promises works."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from max.driver import Buffer
from max.nn.rotary_embedding import LinearScalingParams
from max.nn.transformer import ReturnLogits as MaxReturnLogits
from published import FOLDERS, configured, state_dict_of
from transformers import AutoConfig

import cli
from architectures.decoder.inputs import DecoderBuffers
from architectures.gemma3 import Gemma3Config, Gemma3Inputs, Gemma3Model
from architectures.layers.attention import FULL, SLIDING
from architectures.layers.rope import RopeParameters
from pipelines import PipelineConfig
from pipelines.pipeline_model import ModelInputs, ReturnLogits

PAGE = Path(cli.__file__).parent / "docs" / "contract.md"
CLASSES: dict[str, type[Any]] = {
    "Gemma3Config": Gemma3Config,
    "Gemma3Inputs": Gemma3Inputs,
    "Gemma3Model": Gemma3Model,
}
KINDS: dict[type[Any], str] = {staticmethod: "static ", classmethod: "classmethod "}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table. owner: the class of its section."""

    owner: str
    member: str
    page: str
    here: str
    why: str

    @property
    def expected(self) -> str | None:
        """The member as the code must have it; None: not at all."""
        if self.here == "absent":
            return None
        return self.page + self.here.removeprefix("same") if self.here.startswith("same") else self.here


def read_rows() -> list[Row]:
    """All rows of the page, without the marks of code."""
    rows, owner = [], ""
    for line in PAGE.read_text().splitlines():
        owner = line.removeprefix("## ") if line.startswith("## ") else owner
        if line.startswith("| `"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            rows.append(Row(owner, *(cell.strip().replace("`", "").replace(r"\|", "|") for cell in cells)))
    return rows


ROWS = read_rows()


def describe(owner: str, member: str) -> str | None:
    """A member of the code as the table writes it; None if there is none."""
    cls, name = CLASSES[owner], member.removesuffix("()")
    if member == owner:
        return signature(cls)
    if member == "bases":
        return ", ".join(base.__name__ for base in cls.__bases__)
    value = inspect.getattr_static(cls, name, None)
    if not member.endswith("()"):
        return describe_attribute(cls, name, value)
    if value is None:
        return None
    function = getattr(value, "__func__", value)
    return f"{KINDS.get(type(value), '')}{signature(function)} -> {function.__annotations__['return']}"


def describe_attribute(cls: type[Any], name: str, value: object) -> str | None:
    if isinstance(value, property):
        assert value.fget is not None
        return f"{value.fget.__annotations__['return']}, property"
    annotations = [inspect.get_annotations(base) for base in cls.__mro__]
    declared = [own[name] for own in annotations if name in own]
    if not declared:
        return None
    defaults = {field.name: field.default for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    default = defaults.get(name, dataclasses.MISSING)
    text = "" if default is dataclasses.MISSING else f" = {getattr(default, 'value', default)!r}"
    return re.sub(r"\b_(Tensor|Buffer)\b", "Buffer", re.sub(r"^ClassVar\[(.*)\]$", r"\1", declared[0])) + text


def signature(function: Callable[..., Any]) -> str:
    """Names and defaults; types are told by the rows of the attributes."""
    parts: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = parameter.default
        text = f"{type(default).__name__}.{default.name}" if isinstance(default, Enum) else repr(default)
        parts.append(parameter.name + ("" if default is parameter.empty else f"={text}"))
    return f"({', '.join(parts)})"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.owner}.{row.member}")
def test_a_row_tells_the_truth(row: Row) -> None:
    assert describe(row.owner, row.member) == row.expected
    assert row.here.startswith("same") or row.why, "say why"


@pytest.mark.parametrize("owner", ["Gemma3Config", "Gemma3Inputs"])
def test_what_the_page_constructs_has_rows(owner: str) -> None:
    members = [row.member for row in ROWS if row.owner == owner]
    (constructor,) = (row.page for row in ROWS if row.owner == row.member == owner)
    parameters = [part.split("=")[0] for part in constructor.strip("()").split(", ") if part != "*"]
    assert len(parameters) >= 8
    assert set(parameters) <= set(members)
    assert len(set(members)) == len(members)


def gemma(name: str = "google__gemma-3-1b-it") -> Gemma3Config:
    """The configuration of a published model on the CPU."""
    config = configured(FOLDERS[name], "cpu", "auto", {})
    assert isinstance(config, Gemma3Config)
    return config


@pytest.mark.parametrize(
    ("name", "scaling"),
    [
        ("google__gemma-3-270m-it", None),
        ("google__gemma-3-1b-it", None),
        ("google__gemma-3-4b-it", LinearScalingParams(factor=8.0)),
        ("google__gemma-3-27b-it", LinearScalingParams(factor=8.0)),
    ],
)
def test_published_models_have_the_values_of_their_papers(name: str, scaling: LinearScalingParams | None) -> None:
    config = gemma(name)
    assert (config.rope_theta, config.rope_local_base_freq, config.rope_scaling) == (1e6, 1e4, scaling)
    assert (config.sliding_window_pattern, config.attn_logit_softcapping) == (6, None)
    assert config.num_hidden_layers == len(config.layer_types)
    assert config.kv_params == config.get_kv_params()
    assert not config.interleaved_rope_weights


@pytest.mark.parametrize(
    ("layer_types", "pattern"),
    [
        ("ssssfssssf", 5),
        ("ssssfss", 5),
        ("fff", 1),
        ("sfs", 2),
        ("sss", 4),  # the first full layer would be the fourth
        ("ssfsf", None),
        ("fs", None),
        ("ssfff", None),
    ],
)
def test_the_pattern_is_that_of_the_layers_or_none(layer_types: str, pattern: int | None) -> None:
    types = tuple({"s": SLIDING, "f": FULL}[letter] for letter in layer_types)
    assert dataclasses.replace(gemma(), layer_types=types).sliding_window_pattern == pattern


def test_a_type_of_layer_that_is_not_there_has_no_rope() -> None:
    rope = gemma().rope_parameters
    sliding = dataclasses.replace(gemma(), rope_parameters={SLIDING: rope[SLIDING]})
    assert (sliding.rope_theta, sliding.rope_local_base_freq, sliding.rope_scaling) == (None, 1e4, None)
    full = dataclasses.replace(gemma(), rope_parameters={FULL: rope[FULL]})
    assert (full.rope_theta, full.rope_local_base_freq) == (1e6, None)


def test_scaling_that_is_not_linear_is_not_said_to_be_none() -> None:
    yarn = RopeParameters(1e6, "yarn", {"factor": 4.0})
    with pytest.raises(ValueError, match="rope_scaling is linear or None, and this model's is yarn"):
        _ = dataclasses.replace(gemma(), rope_parameters={FULL: yarn}).rope_scaling


@pytest.mark.parametrize("theirs", list(MaxReturnLogits))
def test_maxs_own_return_logits_are_accepted(theirs: MaxReturnLogits) -> None:
    config, huggingface_config = gemma(), AutoConfig.from_pretrained(FOLDERS["google__gemma-3-1b-it"])
    config.finalize(huggingface_config, {}, theirs)
    assert config.return_logits is ReturnLogits[theirs.name]
    config.finalize(huggingface_config, {}, str(theirs.value))
    assert config.return_logits is ReturnLogits[theirs.name]


def test_return_logits_that_are_none_of_the_three_are_refused() -> None:
    with pytest.raises(ValueError, match="'some'"):
        gemma().finalize(AutoConfig.from_pretrained(FOLDERS["google__gemma-3-1b-it"]), {}, "some")


@pytest.mark.parametrize(
    "name", ["google__gemma-3-1b-it", "google__gemma-4-E2B-it", "Qwen__Qwen3-30B-A3B-FP8", "Qwen__Qwen3-8B"]
)
def test_finalize_leaves_the_state_dict_as_it_is(name: str) -> None:
    state_dict = state_dict_of(FOLDERS[name])
    before = dict(state_dict)
    config = configured(FOLDERS[name], "cpu", "auto", MappingProxyType(state_dict))  # type: ignore[arg-type]
    assert config.is_finalized
    assert list(state_dict) == list(before)
    assert all(state_dict[key] is value for key, value in before.items())


def test_a_configuration_is_what_the_run_alone_tells_too() -> None:
    run = PipelineConfig(model=str(FOLDERS["google__gemma-3-1b-it"]))
    config = Gemma3Config.initialize(run)
    assert not config.is_finalized
    assert config.get_max_seq_len() == Gemma3Config.calculate_max_seq_len(AutoConfig.from_pretrained(run.model), run)
    assert Gemma3Config.construct_kv_params(AutoConfig.from_pretrained(run.model), run) == config.kv_params


def test_inputs_are_constructed_as_the_page_has_it() -> None:
    tokens, offsets, n_logits = (Buffer.from_numpy(np.zeros(n, np.int64)) for n in (3, 2, 1))
    inputs: DecoderBuffers = Gemma3Inputs(tokens, offsets, [], n_logits)
    assert isinstance(inputs, ModelInputs)
    assert (inputs.tokens, inputs.input_row_offsets, inputs.return_n_logits) == (tokens, offsets, n_logits)
    assert inputs.signal_buffers == []
    optional = dict.fromkeys(("lora_ids", "lora_ranks", "hidden_states"), tokens)
    assert all(getattr(inputs, name) is None for name in (*optional, "kv_cache_inputs"))
    all_of_them: DecoderBuffers = Gemma3Inputs(tokens, offsets, [], n_logits, kv_cache_inputs={}, **optional)
    assert all(getattr(all_of_them, name) is tokens for name in optional)


@pytest.mark.parametrize("missing", range(4))
def test_inputs_need_the_four_of_the_page(missing: int) -> None:
    given: Any = {name: [] for name in ("tokens", "input_row_offsets", "signal_buffers", "return_n_logits")}
    del given[list(given)[missing]]
    with pytest.raises(TypeError, match="missing 1 required"):
        Gemma3Inputs(**given)
    with pytest.raises(TypeError, match="positional"):
        Gemma3Inputs([], [], [], [], {})  # type: ignore[call-arg]
