"""Limits of what is compiled: checks that take no longer than reading the schema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from pipelines.errors import InputError
from pipelines.sampling.constraints.closing import closed
from pipelines.sampling.constraints.shape import check_shape

MAX_SCHEMA_CHARACTERS = 128 * 2**10
MAX_PATTERN_CHARACTERS = 16 * 2**10
MAX_GRAMMAR_CHARACTERS = 64 * 2**10
MAX_CHOICES = 4096
_MAX_DEPTH = 100
# The automaton of `multipleOf` has a state for each remainder: this many take half a second.
_MAX_MULTIPLE = 100_000


def check_size(what: str, text: str, limit: int) -> None:
    """Checks the length of a regex or a grammar, and that it is text at all.

    Raises:
        InputError: It is too long, or has no encoding.
    """
    if not isinstance(text, str):
        raise InputError(f"the {what} must be a string")
    if len(text) > limit:
        raise InputError(f"the {what} has {len(text)} characters, and at most {limit} are allowed: shorten it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the {what} is not valid Unicode at character {error.start}: remove it") from error


def checked_schema(schema: Any) -> dict[str, Any]:
    """Checks a JSON schema's size, and what the compiler would take too long for or not notice; closes its objects.

    Raises:
        InputError: The schema is none, is too large or too deep, or has such a keyword.
    """
    if schema is True:
        return {}
    if not isinstance(schema, Mapping):
        raise InputError("a JSON schema must be an object")
    if _depth(schema) > _MAX_DEPTH:
        raise InputError(f"the JSON schema is nested more than {_MAX_DEPTH} levels deep: flatten it")
    try:
        check_size("JSON schema", json.dumps(schema, ensure_ascii=False), MAX_SCHEMA_CHARACTERS)
    except (TypeError, ValueError) as error:  # numbers of thousands of digits can't be written
        raise InputError(f"the JSON schema is not JSON: {error}") from error
    _check_keywords(schema)
    check_shape(schema)
    # x-guidance would set the compiler's own options.
    return closed({key: value for key, value in schema.items() if key != "x-guidance"})


def _depth(value: Any) -> int:
    """Levels of nesting, counted without recursion, up to one more than are allowed."""
    depth, level = 0, [value]
    while level and depth <= _MAX_DEPTH:
        children = (child for item in level for child in _children(item))
        depth, level = depth + 1, [child for child in children if isinstance(child, dict | list)]
    return depth


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
    for child in _children(value):
        yield from _objects(child)


def _check_keywords(schema: Mapping[str, Any]) -> None:
    multiples: list[Decimal] = []
    for part in _objects(schema):
        for name in ("exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(part.get(name), bool):
                raise InputError(f"the JSON schema has {name} as in draft 4: give the bound itself")
        required, least = part.get("required"), part.get("minProperties")
        if isinstance(least, int) and least > 1 + (len(required) if isinstance(required, list) else 0):
            # The compiler does not see to it that the keys of an object differ.
            raise InputError("the JSON schema's minProperties can't be enforced: put properties into required")
        multiple = part.get("multipleOf")
        if (
            isinstance(multiple, int | float)
            and not isinstance(multiple, bool)
            and (isinstance(multiple, int) or math.isfinite(multiple))
        ):
            multiples.append(abs(Decimal(str(multiple))))
    scale = max((-int(multiple.as_tuple().exponent) for multiple in multiples), default=0)
    if scale > 30 or math.lcm(*(int(multiple.scaleb(scale)) for multiple in multiples)) > _MAX_MULTIPLE:
        raise InputError("the JSON schema's multipleOf is too large, or too many of them differ")
