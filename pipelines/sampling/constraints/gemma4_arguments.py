"""JSON schemas of tool arguments as grammars of Gemma 4's own syntax: bare keys, and strings between `<|"|>`.

Keys come in the order in which the model's chat template writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.errors import InputError
from pipelines.sampling.constraints.patterns import FORMATS, searched
from pipelines.sampling.constraints.vocabulary import GrammarVocabulary, escaped, literal, text_without

QUOTE = '<|"|>'
_ANNOTATIONS = frozenset({
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$comment", "$defs", "definitions"),
})  # fmt: skip
_NUMBER_KEYS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_STRING_KEYS = frozenset({"minLength", "maxLength", "pattern", "format"})
_KEYS = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": _STRING_KEYS,
    "number": _NUMBER_KEYS,
    "integer": _NUMBER_KEYS,
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
_FORBIDDEN_IN_KEYS = frozenset(':{}[],<>"')


class Gemma4Arguments:
    """Writes the rules of one schema, whose names begin with `prefix`.

    Raises:
        InputError: The schema has a feature that this syntax is not built for, which the message names.
    """

    def __init__(self, vocabulary: GrammarVocabulary, schema: Mapping[str, Any], prefix: str) -> None:
        self._vocabulary, self._root, self._prefix = vocabulary, schema, prefix
        self._quote = vocabulary.marker(QUOTE)
        self._references: dict[str, str] = {}
        self.rules: list[str] = []
        self.start = self._schema(schema)

    def _rule(self, body: str, options: str = "") -> str:
        name = f"{self._prefix}_{len(self.rules)}"
        self.rules.append(f"{name}{options}: {body.strip() or literal('')}")
        return name

    def _schema(self, schema: Any) -> str:
        """Adds the rules of a schema and returns the name of the first."""
        if schema is True or schema == {}:
            return self._any()
        if not isinstance(schema, Mapping):
            raise InputError("the tool's JSON schema has a schema that is no object")
        keys = schema.keys() - _ANNOTATIONS
        for key in ("$ref", "const", "enum", "anyOf", "oneOf", "allOf"):
            if key in keys:
                self._check_keys(keys - {key, "type"} if key in ("const", "enum") else keys - {key}, f"beside {key}")
                return self._special(key, schema[key])
        kinds = schema.get("type") or self._guessed_type(keys)
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        self._check_keys(keys - {"type"} - frozenset().union(*(_KEYS.get(kind, ()) for kind in kinds)))
        return self._union([self._typed(kind, schema) for kind in kinds])

    def _special(self, key: str, value: Any) -> str:
        if key == "$ref":
            return self._reference(value)
        if key == "const":
            return self._rule(self._value(value))
        if key == "enum":
            return self._rule(" | ".join(map(self._value, value)))
        if (key == "allOf" and len(value) != 1) or (key == "oneOf" and not _are_exclusive(value)):
            raise InputError(f"the tool's JSON schema has {key}, which this model's calls can't be held to")
        return self._union([self._schema(part) for part in value])

    def _check_keys(self, keys: Any, where: str = "") -> None:
        if keys:
            found = f"{', '.join(sorted(keys))} {where}"
            raise InputError(f"the tool's JSON schema has {found}, which this model's calls can't be held to")

    def _guessed_type(self, keys: Any) -> str:
        kinds = [kind for kind, known in _KEYS.items() if keys & known]
        if not kinds:
            self._check_keys(keys)
        return "number" if kinds == ["number", "integer"] else kinds[0]

    def _union(self, names: Sequence[str]) -> str:
        return names[0] if len(names) == 1 else self._rule(" | ".join(names))

    def _reference(self, reference: Any) -> str:
        if reference in self._references:
            return self._references[reference]
        target: Any = self._root
        for part in str(reference).removeprefix("#").split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or part not in target:
                raise InputError(f"the tool's JSON schema refers to {reference!r}, which it does not have")
            target = target[part]
        if not str(reference).startswith("#"):
            raise InputError(f"the tool's JSON schema refers to {reference!r}: only its own parts can be referred to")
        name = self._references[reference] = self._rule("")  # before its parts, which may refer to it
        index = len(self.rules) - 1
        self.rules[index] = f"{name}: {self._schema(target)}"
        return name

    def _typed(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return self._array(schema)
        if kind == "string":
            return self._string(schema)
        if kind not in _KEYS:
            raise InputError(f"the tool's JSON schema has the type {kind!r}, which does not exist")
        own = {key: schema[key] for key in _KEYS[kind] if key in schema}
        return self._rule(f"%json {json.dumps({'type': kind, **own})}")

    def _object(self, schema: Mapping[str, Any]) -> str:
        properties = schema.get("properties", {})
        required = set(schema.get("required", ()))
        extra = schema.get("additionalProperties", not properties)
        rest = first = ""
        if extra is not False:
            member = self._rule(f'/[^\\s:{{}}\\[\\],<>"]{{1,64}}/ ":" {self._schema(extra)}')
            first, rest = f'({member} ("," {member})*)?', f'("," {member})*'
        for key in sorted({*properties, *required}, key=str.lower, reverse=True):
            member = f"{literal(self._key(key) + ':')} {self._schema(properties.get(key, extra))}"
            if key in required:
                first, rest = f"{member} {rest}", f'"," {member} {rest}'
            else:
                first, rest = f"{member} {rest} | {first or literal('')}", f'("," {member})? {rest}'
            first, rest = self._rule(first), self._rule(rest)
        return self._rule(f'"{{" {first} "}}"')

    def _key(self, key: str) -> str:
        if not key or key != key.strip() or _FORBIDDEN_IN_KEYS & set(key):
            raise InputError(f"the tool's JSON schema has the property {key!r}, which this model's calls can't spell")
        return key

    def _array(self, schema: Mapping[str, Any]) -> str:
        item = self._schema(schema.get("items", True))
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        if most is not None and most < max(least, 0):
            raise InputError("the tool's JSON schema has maxItems below minItems")
        if most == 0:
            return self._rule('"[]"')
        count = f"{{{max(least - 1, 0)},{'' if most is None else int(most) - 1}}}"
        items = f'{item} ("," {item}){count}'
        return self._rule(f'"[" {items if least else f"({items})?"} "]"')

    def _string(self, schema: Mapping[str, Any]) -> str:
        """A string as a terminal with its end, or up to it where the quote is no control token."""
        parts = []
        if "pattern" in schema:
            parts.append(f"/{searched(schema['pattern'])}/")
        if "format" in schema:
            if schema["format"] not in FORMATS:
                raise InputError(f"the tool's JSON schema has the format {schema['format']!r}, which is unknown")
            parts.append(f"/{FORMATS[schema['format']]}/")
        if "minLength" in schema or "maxLength" in schema:
            parts.append(f"/(?s:.{{{int(schema.get('minLength', 0))},{schema.get('maxLength', '')}}})/")
        text = " & ".join([*parts, text_without(QUOTE)])
        name = f"{self._prefix}_{len(self.rules)}"
        if self._quote.startswith("<["):
            self.rules.append(f"{name.upper()}_TEXT: {text}")
            return self._rule(f"{self._quote} {name.upper()}_TEXT {self._quote}")
        self.rules.append(f"{name.upper()}_TEXT: ({text}) /{escaped(QUOTE)}/")
        return self._rule(f"{literal(QUOTE)} {self._rule(f'{name.upper()}_TEXT', '[lazy]')}")

    def _any(self) -> str:
        """Any value."""
        if "" not in self._references:
            name = self._references[""] = self._rule("")
            index = len(self.rules) - 1
            scalar = self._rule('%json {"type": ["number", "boolean", "null"]}')
            parts = [scalar, self._string({}), self._object({}), self._array({})]
            self.rules[index] = f"{name}: {' | '.join(parts)}"
        return self._references[""]

    def _value(self, value: Any) -> str:
        """Lark expression for one value."""
        if isinstance(value, str):
            if QUOTE in value:
                raise InputError(
                    f"the tool's JSON schema has the string {value!r}, which this model's calls can't spell"
                )
            return f"{self._quote} {literal(value)} {self._quote}" if value else f"{self._quote} {self._quote}"
        if isinstance(value, Mapping):
            keys = sorted(value, key=str.lower)
            members = ' "," '.join(f"{literal(self._key(key) + ':')} {self._value(value[key])}" for key in keys)
            return f'"{{" {members} "}}"'
        if isinstance(value, list):
            members = ' "," '.join(map(self._value, value))
            return f'"[" {members} "]"'
        return literal(json.dumps(value))


def _are_exclusive(schemas: Sequence[Any]) -> bool:
    """Whether each is of one type, and no two of the same, so that one at most can hold."""
    kinds = [schema.get("type") if isinstance(schema, Mapping) else None for schema in schemas]
    is_known = all(isinstance(kind, str) for kind in kinds)
    return is_known and len({"number" if kind == "integer" else kind for kind in kinds}) == len(kinds)
