"""Random JSON schemas, of the features that are supported."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]
_KEYS = ["name", "größe", "ключ", "名前", "a b", 'q"uote', "x-y", "emoji😀", "tab\t", "n"]
_PATTERNS = ["^[a-z]{2,5}$", "^\\d{3}-\\d{2}$", "^(foo|bar)+$", "[a-zA-Z0-9]", "^#[0-9a-f]{6}$", "^é?x*$"]
_FORMATS = ["date", "date-time", "time", "email", "uuid", "ipv4"]
DRAFTS = ("http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema")


class SchemaMaker:
    """Makes one schema. draft: its place in DRAFTS."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.draft = seed % 2
        self.defs_key = ("definitions", "$defs")[self.draft]
        self.defs = [f"d{i}" for i in range(self.rng.randint(0, 3))]

    def make(self) -> Schema:
        """The whole schema, with its definitions."""
        schema = {"$schema": DRAFTS[self.draft], **self.object(depth=0)}
        if self.defs:
            schema[self.defs_key] = {name: self.schema(depth=2) for name in self.defs}
            if self.rng.random() < 0.3:
                schema[self.defs_key]["tree"] = self.tree()
                schema["properties"]["tree"] = {"$ref": f"#/{self.defs_key}/tree"}
        return schema

    def schema(self, depth: int) -> Schema:
        """Any schema; deep ones are scalars."""
        makers = [self.string, self.number, self.integer, self.enum, self.const, self.scalar]
        if depth < 3:
            makers += [self.object, self.object, self.array, self.tuple, self.union, self.all_of, self.map]
        if depth < 2 and self.defs:
            makers += [self.ref] * 3
        made: Schema = self.rng.choice(makers)(depth + 1)
        return {**made, "description": "x"} if self.rng.random() < 0.1 and "$ref" not in made else made

    def tree(self) -> Schema:
        """A recursive schema."""
        items = {"type": "array", "items": {"$ref": f"#/{self.defs_key}/tree"}, "maxItems": 2}
        return {"type": "object", "properties": {"v": {"type": "integer"}, "kids": items}, "required": ["v"]}

    def ref(self, depth: int) -> Schema:
        return {"$ref": f"#/{self.defs_key}/{self.rng.choice(self.defs)}"}

    def object(self, depth: int) -> Schema:
        keys = self.rng.sample(_KEYS, self.rng.randint(1, 4))
        required = [key for key in keys if self.rng.random() < 0.7]
        schema: Schema = {
            "type": "object",
            "properties": {key: self.schema(depth) for key in keys},
            "required": required,
        }
        if self.rng.random() < 0.7:
            schema["additionalProperties"] = False
        return schema

    def map(self, depth: int) -> Schema:
        if self.rng.random() < 0.5:
            return {"type": "object", "additionalProperties": self.string(depth), "maxProperties": 3}
        return {
            "type": "object",
            "patternProperties": {"^[a-z]{1,4}$": self.integer(depth)},
            "additionalProperties": False,
        }

    def array(self, depth: int) -> Schema:
        least = self.rng.randint(0, 2)
        return {
            "type": "array",
            "items": self.schema(depth),
            "minItems": least,
            "maxItems": least + self.rng.randint(0, 3),
        }

    def tuple(self, depth: int) -> Schema:
        items, rest = ("items", "additionalItems") if self.draft == 0 else ("prefixItems", "items")
        members = [self.schema(depth) for _ in range(self.rng.randint(1, 3))]
        return {"type": "array", items: members, rest: False, "minItems": len(members)}

    def union(self, depth: int) -> Schema:
        if self.rng.random() < 0.4:
            return {"oneOf": [self.string(depth), self.integer(depth), {"type": "null"}]}
        if self.rng.random() < 0.4:
            return {"type": ["string", "integer", "null"], "maxLength": 10, "minimum": 0}
        return {"anyOf": [self.schema(depth) for _ in range(self.rng.randint(2, 3))]}

    def all_of(self, depth: int) -> Schema:
        first, second = self.rng.sample(_KEYS, 2)
        parts = [
            {"type": "object", "properties": {key: self.string(depth)}, "required": [key]} for key in (first, second)
        ]
        return {"allOf": parts}

    def string(self, depth: int) -> Schema:
        kind = self.rng.randint(0, 3)
        if kind == 0:
            return {"type": "string", "pattern": self.rng.choice(_PATTERNS)}
        if kind == 1:
            return {"type": "string", "format": self.rng.choice(_FORMATS)}
        least = self.rng.randint(0, 5)
        return {"type": "string", "minLength": least, "maxLength": least + self.rng.randint(0, 30)}

    def integer(self, depth: int) -> Schema:
        low = self.rng.randint(-1000, 1000)
        schema: Schema = {"type": "integer", "minimum": low, "maximum": low + self.rng.randint(20, 5000)}
        return {**schema, "multipleOf": self.rng.choice([2, 3, 7, 10])} if self.rng.random() < 0.3 else schema

    def number(self, depth: int) -> Schema:
        low = self.rng.uniform(-10, 10)
        return {"type": "number", "exclusiveMinimum": round(low, 2), "maximum": round(low + 20, 1)}

    def enum(self, depth: int) -> Schema:
        return {"enum": self.rng.sample(["a", "ü", 'q"', 1, -2.5, None, True, ["x", 1], {"k": "v"}, ""], 4)}

    def const(self, depth: int) -> Schema:
        return {"const": self.rng.choice(["fixed", 5, None, [1, "two"], {"k": [True]}, "löng text that is forced"])}

    def scalar(self, depth: int) -> Schema:
        return {"type": self.rng.choice(["boolean", "null", "string", "integer", "number"])}
