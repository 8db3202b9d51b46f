"""Objects that list their properties are closed, where that leaves nothing out that the schema demands."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.sampling.constraints.closing import closed

S: dict[str, Any] = {"type": "string"}
A: dict[str, Any] = {"type": "object", "properties": {"a": S}}
CLOSED = {**A, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "result"),
    [
        (A, CLOSED),
        ({"properties": {"a": S}}, {"properties": {"a": S}, "additionalProperties": False}),
        ({**A, "type": ["object", "null"]}, {**CLOSED, "type": ["object", "null"]}),
        ({"type": "array", "items": [A, S]}, {"type": "array", "items": [CLOSED, S]}),
        ({"type": "array", "items": A}, {"type": "array", "items": CLOSED}),
        ({"anyOf": [A, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"$defs": {"x": A}, "$ref": "#/$defs/x"}, None),
        (
            {"properties": {"x": {"$ref": "#/$defs/x", "description": "x"}}, "$defs": {"x": A}},
            {
                "properties": {"x": {"$ref": "#/$defs/x", "description": "x"}},
                "$defs": {"x": CLOSED},
                "additionalProperties": False,
            },
        ),
        ({"properties": {"properties": A}}, {"properties": {"properties": CLOSED}, "additionalProperties": False}),
        ({"properties": {"not": S}}, {"properties": {"not": S}, "additionalProperties": False}),
    ],
)
def test_objects_are_closed(schema: dict[str, Any], result: dict[str, Any] | None) -> None:
    assert closed(schema) == (schema if result is None else result)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**A, "additionalProperties": True},
        {**A, "additionalProperties": S},
        {**A, "patternProperties": {"^x": S}},
        {**A, "minProperties": 2},
        {**A, "required": ["b"]},
        {**A, "propertyNames": {"maxLength": 3}},
        {"properties": {"type": S}, "type": "string"},
        {"allOf": [A, {"properties": {"b": S}}]},
        {"oneOf": [A, {"properties": {"b": S}}]},
        {**A, "if": {"required": ["a"]}, "then": {"required": ["b"]}},
        {**A, "anyOf": [{"required": ["a"]}, {"properties": {"b": S}, "required": ["b"]}]},
        {"$defs": {"x": A}, "$ref": "#/$defs/x", "properties": {"b": S}},
        {**A, "dependentSchemas": {"a": {"properties": {"b": S}}}},
        {**A, "unevaluatedProperties": False},
    ],
)
def test_what_others_decide_stays_as_it_is(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


def test_the_given_schema_is_left_alone() -> None:
    schema = {"items": {"properties": {"a": S}}}
    closed(schema)
    assert schema == {"items": {"properties": {"a": S}}}
