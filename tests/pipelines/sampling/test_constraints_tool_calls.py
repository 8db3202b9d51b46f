"""Forced tool calls from random logits: the family's parser finds them, with arguments that the schema allows."""

from __future__ import annotations

import ipaddress
import json
import urllib.parse
from typing import Any

import jsonschema
import numpy as np
import pytest
from json_schemas import SchemaMaker
from structured import PUBLISHED_FOLDER, Vocabulary, generate, published_vocabulary, small_vocabulary

from pipelines.errors import InputError
from pipelines.sampling.constraints import Rule, Thinking, tool_call_constraint
from pipelines.text.parsers import ParsedAnswer, answer_format, parse_answer
from pipelines.text.parsers.families import REASONING_FORMATS

FAMILIES = ["qwen3", "gemma4", "llama3", "gemma3"]
MOST_SLOW = ["qwen3", *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES[1:])]
S = {"type": "string"}
TREE = {"type": "object", "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}, "required": ["v"]}  # fmt: skip  # noqa: E501
PARAMETERS: list[dict[str, Any]] = [
    {},
    {"type": "object", "properties": {}},
    {"properties": {"city": S, "days": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["city", "days"]},
    {"properties": {"ö": {"enum": ["a", "", 1, None, True]}, "B": {"const": {"k": [1, "x"]}}, "a": {"type": "number"}}},
    {"properties": {"list": {"type": "array", "items": {"type": "array", "items": S, "minItems": 1, "maxItems": 2}, "minItems": 2, "maxItems": 4}}, "required": ["list"]},  # noqa: E501
    {"properties": {"u": {"anyOf": [S, {"type": "integer"}, {"type": "object", "properties": {"x": {"type": "null"}}}]}}, "required": ["u"]},  # noqa: E501
    {"$defs": {"tree": TREE}, "properties": {"tree": {"$ref": "#/$defs/tree"}}, "required": ["tree"]},
    {"properties": {"p": {"type": "string", "pattern": "^[a-z]{2}\\d$"}, "q": {"type": "string", "pattern": '[a-z@"]'}}, "required": ["p", "q"]},  # noqa: E501
    {"properties": {"s": {"type": "string", "minLength": 2, "maxLength": 4}, "d": {"type": "string", "format": "date-time"}}, "required": ["s", "d"]},  # noqa: E501
    {"properties": {"o": {"oneOf": [S, {"type": "null"}]}, "t": {"type": ["string", "integer"]}, "w": {"allOf": [S]}}, "required": ["o", "t", "w"]},  # noqa: E501
    {"properties": {"m": {"type": "object", "additionalProperties": {"type": "null"}}, "x": {}}, "required": ["m"]},
    {"properties": {"only": S, "b": {"type": "boolean"}}, "required": ["b"], "additionalProperties": False},
]  # fmt: skip


def tool(name: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def answer_of(
    vocabulary: Vocabulary,
    family: str,
    tools: list[dict[str, Any]],
    seed: int,
    choice: Any,
    reasoning: str = "none",
    **options: Any,
) -> ParsedAnswer:
    constraint = tool_call_constraint(vocabulary.compiler, family, tools, choice, **options)
    assert constraint is not None
    bias = {vocabulary.text.eos_token_ids[0]: 3 if seed % 2 else -20}
    answer = generate(vocabulary, constraint, np.random.default_rng(seed), logit_bias=bias)
    assert answer.finish_reason == "stop"
    names = [tool["function"]["name"] for tool in tools]
    is_open = "thinking" in options and options["thinking"].is_open
    return parse_answer(answer_format("", reasoning, family).parser(names, is_open), answer.text)


def check_arguments(answer: ParsedAnswer, tools: list[dict[str, Any]]) -> None:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    for call in answer.tool_calls:
        arguments = json.loads(call.arguments)
        assert isinstance(arguments, dict)
        kind = jsonschema.Draft202012Validator
        kind(schemas[call.name], format_checker=kind.FORMAT_CHECKER).validate(arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_named_calls_are_valid(family: str) -> None:
    for seed, parameters in enumerate(PARAMETERS * 2):
        tools = [tool("other", {}), tool("get-it", parameters)]
        answer = answer_of(small_vocabulary(), family, tools, seed, named("get-it"))
        assert [call.name for call in answer.tool_calls] == ["get-it"] and not answer.content
        check_arguments(answer, tools)


@pytest.mark.parametrize("family", MOST_SLOW)
def test_required_calls_are_valid(family: str) -> None:
    tools = [tool(f"tool_{number}", parameters) for number, parameters in enumerate(PARAMETERS)]
    numbers = set()
    for seed in range(12):
        for parallel in (True, False):
            answer = answer_of(small_vocabulary(), family, tools, seed, "required", parallel=parallel)
            assert answer.tool_calls and not answer.content
            numbers.add(len(answer.tool_calls))
            assert parallel or len(answer.tool_calls) == 1
            check_arguments(answer, tools)
    assert len(numbers) > 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "llama3", "gemma3"])
def test_random_schemas(family: str) -> None:
    for seed in range(20):
        tools = [tool("f", SchemaMaker(seed).make())]
        answer = answer_of(small_vocabulary(), family, tools, seed, named("f"))
        (call,) = answer.tool_calls
        kind = jsonschema.validators.validator_for(tools[0]["function"]["parameters"])
        kind(tools[0]["function"]["parameters"]).validate(json.loads(call.arguments))


@pytest.mark.parametrize("family", FAMILIES)
def test_auto(family: str) -> None:
    vocabulary, tools = small_vocabulary(), [tool("f", {"type": ["object"], "not": {}}), tool("g", PARAMETERS[2])]
    assert tool_call_constraint(vocabulary.compiler, family, tools) is None
    assert tool_call_constraint(vocabulary.compiler, family, tools, "auto") is None
    assert tool_call_constraint(vocabulary.compiler, family, tools, "auto", parallel=False) is None
    assert tool_call_constraint(vocabulary.compiler, family, tools, "none", parallel=False) is None
    assert tool_call_constraint(vocabulary.compiler, family, [], "required") is None
    strict = [tool("g", PARAMETERS[2], strict=True), tool("f", {"type": "object"})]
    counts = set()
    for seed in range(1, 20, 2):
        answer = answer_of(vocabulary, family, strict, seed, "auto", parallel=False)
        counts.add(len(answer.tool_calls))
        check_arguments(answer, strict)
    assert counts <= {0, 1}
    for seed in range(1, 20, 2):
        check_arguments(answer_of(vocabulary, family, strict, seed, "auto"), strict)


@pytest.mark.parametrize("family", ["qwen3", "gemma4"])
def test_text_and_a_call_that_are_allowed(family: str) -> None:
    """What a model would write passes the grammar, and nothing after the last call does."""
    vocabulary, tools = small_vocabulary(), [tool("g", PARAMETERS[2], strict=True)]
    call = {
        "qwen3": '<tool_call>\n{"name": "g", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>',
        "gemma4": '<|tool_call>call:g{city:<|"|>Rome<|"|>,days:3}<tool_call|>',
    }[family]
    constraint = tool_call_constraint(vocabulary.compiler, family, tools, "auto", parallel=False)
    assert constraint is not None
    for token in vocabulary.ids(f"Well, <b: {call}"):
        assert constraint.allows(token)
        constraint.accept(token)
    assert constraint.is_stopped
    for text in (call.replace("3", "33"), call.replace("Rome", "Rome<"), "<tool"):
        constraint = tool_call_constraint(vocabulary.compiler, family, tools, "auto", parallel=False)
        assert constraint is not None
        for token in vocabulary.ids(text)[:9]:
            assert constraint.allows(token)
            constraint.accept(token)


@pytest.mark.parametrize("reasoning", REASONING_FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("is_open", [False, True])
def test_calls_after_thinking(reasoning: Any, is_open: bool) -> None:
    tools, num_thought = [tool("f", PARAMETERS[2])], 0
    for seed in range(1, 20, 2):
        thinking = Thinking(reasoning.syntax, is_open)
        answer = answer_of(
            small_vocabulary(), reasoning.name, tools, seed, named("f"), reasoning.name, thinking=thinking
        )
        assert len(answer.tool_calls) == 1 and not answer.content
        num_thought += bool(answer.reasoning)
        check_arguments(answer, tools)
    assert num_thought > 3


TEXTS = {
    "duration": ["P3D", "PT1H30M", "P2W", "PT5S"],
    "hostname": ["localhost", "www.example-1.org"],
    "ipv6": ["::", "::1", "fe80::1:2", "2001:db8:0:0:0:0:0:1"],
    "uri": ["https://example.org/a/b?q=%20&r=1#x", "mailto:a@b.c", "http://localhost:8000"],
}


@pytest.mark.parametrize("name", TEXTS)
def test_formats_of_gemma4_calls(name: str) -> None:
    vocabulary, parameters = (
        small_vocabulary(),
        {"properties": {"x": {"type": "string", "format": name}}, "required": ["x"]},
    )
    tools = [tool("f", parameters)]
    for text in TEXTS[name]:
        constraint = tool_call_constraint(vocabulary.compiler, "gemma4", tools, "required")
        assert constraint is not None
        for token in vocabulary.ids(f'<|tool_call>call:f{{x:<|"|>{text}<|"|>}}<tool_call|>'):
            assert constraint.allows(token), (text, vocabulary.text.decode([token]))
            constraint.accept(token)
    for seed in range(10):
        answer = answer_of(vocabulary, "gemma4", tools, seed, "required")
        check_arguments(answer, tools)
        for call in answer.tool_calls:
            text = json.loads(call.arguments)["x"]
            assert name != "ipv6" or ipaddress.IPv6Address(text)
            assert name != "uri" or urllib.parse.urlsplit(text).scheme


@pytest.mark.parametrize(("parameters", "message"), [
    ({"properties": {"x": {"not": {}}}}, "not"),
    ({"properties": {"x": {"type": "string", "format": "color"}}}, "color"),
    ({"properties": {"x": {"type": "string", "pattern": "^a|b$"}}}, "pattern"),
    ({"properties": {"x": {"allOf": [S, S]}}}, "allOf"),
    ({"properties": {"x": {"oneOf": [S, S]}}}, "oneOf"),
    ({"properties": {"x": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
    ({"properties": {"x": {"$ref": "#/$defs/y"}}}, "#/\\$defs/y"),
    ({"properties": {"x": {"$ref": "http://x/y"}}}, "http://x/y"),
    ({"properties": {"a:b": S}}, "a:b"),
    ({"properties": {"x": {"const": 'a<|"|>'}}}, "spell"),
    ({"properties": {"x": {"type": "foo"}}}, "foo"),
    ({"type": "array"}, "object"),
    ({"properties": {"x": {"anyOf": [S], "minLength": 3}}}, "minLength beside anyOf"),
])  # fmt: skip
def test_what_gemma4_calls_cannot_be_held_to(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tool_call_constraint(small_vocabulary().compiler, "gemma4", [tool("f", parameters)], "required")


ANSWERS: list[tuple[Rule, str]] = [
    (Rule.json_schema({"properties": {"nbme": S}, "required": ["nbme"]}), '{"nbme": "x"}'),
    (Rule.json_schema({"properties": {"name": S}, "additionalProperties": False}), '{"name": "f"}'),
    (Rule.regex("[a-c]{3}"), "abc"),
    (Rule.choice(["yes", "no"]), "yes"),
    (Rule.grammar('start: "sum " NUMBER\nNUMBER: /[1-9]/'), "sum 5"),
]  # fmt: skip
CALLS = {
    "qwen3": '<tool_call>\n{"name": "f", "arguments": {"x": "y"}}\n</tool_call>',
    "gemma4": '<|tool_call>call:f{x:<|"|>y<|"|>}<tool_call|>',
    "llama3": '{"name": "f", "parameters": {"x": "y"}}',
    "gemma3": '{"name": "f", "parameters": {"x": "y"}}',
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("rule", "text"), ANSWERS)
def test_an_answer_or_calls(family: str, rule: Rule, text: str) -> None:
    """Either is allowed, in JSON too that begins as a call does, and nothing else."""
    vocabulary, tools = small_vocabulary(), [tool("f", {"properties": {"x": S}})]
    for each in (text, CALLS[family]):
        constraint = tool_call_constraint(vocabulary.compiler, family, tools, answer=rule)
        assert constraint is not None
        for token in vocabulary.ids(each):
            assert constraint.allows(token), vocabulary.text.decode([token])
            constraint.accept(token)
        assert constraint.allows(vocabulary.text.eos_token_ids[0])
    constraint = tool_call_constraint(vocabulary.compiler, family, tools, answer=rule)
    assert constraint is not None and not constraint.allows(vocabulary.ids("Well")[0])
    forced = tool_call_constraint(vocabulary.compiler, family, tools, "required", answer=rule)
    assert forced is not None and not forced.allows(vocabulary.ids("abc")[0])


def test_the_tool_that_cant_be_held_is_named() -> None:
    tools = [tool("good", {}), tool("bad", {"properties": {"x": {"not": {}}}})]
    for family in FAMILIES:
        with pytest.raises(InputError, match=r"the tool 'bad': .*not"):
            tool_call_constraint(small_vocabulary().compiler, family, tools, "required")


def test_refusals() -> None:
    compiler, tools = small_vocabulary().compiler, [tool("f", {})]
    with pytest.raises(InputError, match="'g', which is none of the tools"):
        tool_call_constraint(compiler, "qwen3", tools, named("g"))
    with pytest.raises(InputError, match="tool_choice='any'"):
        tool_call_constraint(compiler, "qwen3", tools, "any")
    with pytest.raises(InputError, match="not"):
        tool_call_constraint(compiler, "qwen3", [tool("f", {"not": {}})], "required")
    with pytest.raises(InputError, match="name of a function"):
        tool_call_constraint(compiler, "qwen3", tools, {"type": "function"})


@pytest.mark.skipif(PUBLISHED_FOLDER is None, reason="PUBLISHED_TOKENIZERS names no folder with published tokenizers")
@pytest.mark.parametrize(("name", "family"), [("gemma-4", "gemma4"), ("qwen2", "qwen3"), ("llama-bpe", "llama3")])
def test_published_tokenizers(name: str, family: str) -> None:
    vocabulary = published_vocabulary(name)
    syntax = next((format.syntax for format in REASONING_FORMATS if format.name == family), None)
    reasoning, options = ("none", {}) if syntax is None else (family, {"thinking": Thinking(syntax)})
    for seed, parameters in enumerate(PARAMETERS):
        tools = [tool("f", parameters)]
        answer = answer_of(vocabulary, family, tools, seed, named("f"), reasoning, **options)
        assert len(answer.tool_calls) == 1 and not answer.content
        check_arguments(answer, tools)
