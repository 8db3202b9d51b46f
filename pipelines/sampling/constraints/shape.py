"""The shape of JSON schemas: each keyword has a value of the kind that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.errors import InputError


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == value // 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (lambda value: _is_text(value) or (_is_texts(value) and bool(value)), "a string, or a list of them"),
    "required": (_is_texts, "a list of strings"),
    "enum": (lambda value: isinstance(value, list), "a list"),
    **dict.fromkeys(("$ref", "pattern", "format"), (_is_text, "a string")),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), (_is_number, "a number")),
    "multipleOf": (_is_number, "a number"),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), (_is_count, "a whole number from 0 on")),
    **dict.fromkeys(("minProperties", "maxProperties"), (_is_count, "a whole number from 0 on")),
}
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
LISTED = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
SINGLE = frozenset(
    {"additionalProperties", "additionalItems", "contains", "not", "propertyNames", "if", "then", "else"}
)
"""Keywords whose values are schemas: by name, in a list, or one; `items` has either of the last two."""


def check_shape(schema: Any, path: str = "") -> None:
    """Checks the kinds of the values in a schema of bounded depth, and of those in it.

    Raises:
        InputError: One is wrong; the message names its place.
    """
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise _wrong(path, "a schema")
    for key, value in schema.items():
        _check_value(key, value, f"{path}.{key}" if path else str(key))


def _check_value(key: str, value: Any, path: str) -> None:
    if key in _VALUES:
        is_right, kind = _VALUES[key]
        if not is_right(value):
            raise _wrong(path, kind)
    elif key in NAMED:
        if not isinstance(value, Mapping):
            raise _wrong(path, "an object of schemas")
        for name, part in value.items():
            check_shape(part, f"{path}.{name}")
    elif key in LISTED or (key == "items" and isinstance(value, list)):
        if not isinstance(value, list) or not (value or key == "items"):
            raise _wrong(path, "a list of schemas")
        for number, part in enumerate(value):
            check_shape(part, f"{path}.{number}")
    elif key in SINGLE or key == "items":
        check_shape(value, path)


def _wrong(path: str, kind: str) -> InputError:
    return InputError(f"the JSON schema's {' '.join(path.split())[-200:]} must be {kind}")
