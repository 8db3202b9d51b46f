"""JSON schemas with something wrong anywhere in them: an error of the input, or a constraint, and nothing else."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from json_schemas import SchemaMaker
from structured import small_vocabulary

from pipelines.errors import InputError
from pipelines.sampling.constraints import tool_call_constraint

JUNK: list[Any] = [None, True, -1, 0.5, 10**5000, 10**4000, 1e308, "", "object", "#/x"]
JUNK += [[], [[]], [1, "a", {}], {}, {"a": 1}, {"type": 5}, ["a", "a"]]
KEYS = ["required", "properties", "items", "anyOf", "allOf", "oneOf", "enum", "type", "$ref", "minItems", "maxItems"]
KEYS += ["pattern", "format", "minLength", "maximum", "multipleOf", "minProperties", "additionalProperties", "$defs"]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container within a value, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def mutated(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    schema = copy.deepcopy(SchemaMaker(seed % 40).make())
    for _ in range(rng.randint(1, 2)):
        container, key = rng.choice(places(schema) or [(schema, "type")])
        if isinstance(container, dict) and rng.random() < 0.6:
            key = rng.choice(KEYS)
        container[key] = copy.deepcopy(rng.choice(JUNK))
    return schema


@pytest.mark.parametrize(
    "first", [0, pytest.param(150, marks=pytest.mark.slow), pytest.param(900, marks=pytest.mark.slow)]
)
def test_what_is_wrong_is_an_input_error(first: int) -> None:
    compiler, num_refused = small_vocabulary().compiler, 0
    for seed in range(first, first + (150 if first < 150 else 750)):
        schema = mutated(seed)
        for family in (None, "qwen3", "gemma4"):
            tools = [{"function": {"name": "f", "parameters": schema}}]
            try:
                if family is None:
                    compiler.json_schema(schema)
                else:
                    tool_call_constraint(compiler, family, tools, "required")
            except InputError as error:
                num_refused += 1
                assert "\n" not in str(error) and len(str(error)) < 1000, schema
    assert num_refused > 50


@pytest.mark.parametrize(("schema", "words"), [
    ({"properties": [], "type": "object"}, "properties must be an object"),
    ({"properties": {"a": 5}}, "properties.a must be a schema"),
    ({"properties": {"a": {"required": [["b"]]}}}, "properties.a.required must be a list of strings"),
    ({"anyOf": 5}, "anyOf must be a list of schemas"),
    ({"anyOf": []}, "anyOf must be a list of schemas"),
    ({"items": "a"}, "items must be a schema"),
    ({"enum": {}}, "enum must be a list"),
    ({"type": 5}, "type must be a string"),
    ({"type": ["object", 5]}, "type must be a string"),
    ({"minItems": "a"}, "minItems must be a whole number"),
    ({"minLength": -1}, "minLength must be a whole number"),
    ({"pattern": 5}, "pattern must be a string"),
    ({"maximum": 10**5000}, "not JSON"),
])  # fmt: skip
def test_the_wrong_place_is_named(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        small_vocabulary().compiler.json_schema(schema)


def test_names_of_properties_are_no_keywords() -> None:
    names = {name: {"type": "string"} for name in KEYS}
    small_vocabulary().compiler.json_schema({"type": "object", "properties": names, "default": {"required": 5}})
    small_vocabulary().compiler.json_schema({"enum": [{"required": 5, "properties": []}]})
