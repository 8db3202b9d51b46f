"""Objects of JSON schemas that list properties and do not say whether there may be others."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.sampling.constraints.shape import LISTED, NAMED, SINGLE

_WHOLE = frozenset({"allOf", "oneOf", "not", "if", "dependentSchemas", "unevaluatedProperties", "$dynamicRef"})
"""Keywords by which what one schema leaves open decides what another one means: nothing is closed beside them."""
_OPEN = frozenset({"additionalProperties", "patternProperties", "propertyNames", "minProperties", "anyOf", "$ref"})
_ANNOTATIONS = frozenset({"$ref", "title", "description", "default", "examples", "deprecated", "$comment"})


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema whose objects have the properties that they list and no others, unless they say so themselves.

    What it allows, the given schema allows too. A model that may add properties goes on with them, often until its
    answer is cut; other servers close objects as well. Schemas with keywords that combine others stay as they are.

    schema: one that `check_shape` has passed.
    """
    copied = copy.deepcopy(dict(schema))
    parts = list(_parts(copied))
    if any(not _WHOLE.isdisjoint(part) or _refers_beside_others(part) for part in parts):
        return copied
    members = {id(member) for part in parts if "properties" in part for member in part.get("anyOf", ())}
    for part in parts:
        if id(part) not in members and _lists_all(part):
            part["additionalProperties"] = False
    return copied


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and those in it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for key, value in schema.items():
        if key in NAMED:
            inner = list(value.values())
        elif key in LISTED or (key == "items" and isinstance(value, list)):
            inner = value
        else:
            inner = [value] if key in SINGLE or key == "items" else []
        for part in inner:
            yield from _parts(part)


def _refers_beside_others(part: Mapping[str, Any]) -> bool:
    """Whether a reference has keywords beside it that hold together with what it refers to."""
    return "$ref" in part and not _ANNOTATIONS.issuperset(part)


def _lists_all(part: Mapping[str, Any]) -> bool:
    """Whether an object's properties are listed, the required ones among them, and nothing is said of others."""
    properties, required, kind = part.get("properties"), part.get("required", []), part.get("type", "object")
    if not isinstance(properties, dict) or not properties or not _OPEN.isdisjoint(part):
        return False
    is_object = kind == "object" or (isinstance(kind, list) and "object" in kind)
    return is_object and isinstance(required, list) and all(name in properties for name in required)
