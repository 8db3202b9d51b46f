"""The metadata of a GGUF file, read with the types that a model's description needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import InputError

MAX_SHOWN = 80
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # types of tokens


def printable(text: str) -> str:
    """Returns a name from a file as messages show it: a terminal obeys control characters, and names may be long."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."


@dataclass(frozen=True)
class Metadata:
    """The metadata of one file.

    values: by key; numbers, booleans, strings, numpy arrays of numbers, lists of strings. Every method raises
    InputError if the value is of another type, or if there is none and no default.
    """

    path: Path
    values: Mapping[str, Any]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def count(self, key: str, default: int | None = None) -> int:
        """Returns a number that is not negative."""
        value = self._value(key, default)
        if type(value) is not int or value < 0:
            raise self.wrong(key, "a whole number that is not negative")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a number."""
        value = self._value(key, default)
        if type(value) not in (int, float):
            raise self.wrong(key, "a number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Returns true or false."""
        value = self._value(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Returns a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def texts(self, key: str) -> Sequence[str]:
        """Returns a list of strings."""
        value = self._value(key, None)
        if not isinstance(value, list):
            raise self.wrong(key, "a list of strings")
        return value

    def numbers(self, key: str) -> Sequence[Any]:
        """Returns a list of numbers or booleans."""
        value = self._value(key, None)
        if not isinstance(value, np.ndarray):
            raise self.wrong(key, "a list of numbers")
        return value.tolist()

    def counts(self, key: str, num_layers: int, default: int | None = None) -> Sequence[int]:
        """Returns a number for each layer: those of a list, or one that counts for all layers."""
        value = self._value(key, default)
        if not isinstance(value, np.ndarray):
            return [self.count(key, default)] * num_layers
        numbers = value.tolist() if len(value) == num_layers else []
        if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
            raise self.wrong(key, f"a whole number, or one for each of {num_layers} layers")
        return numbers

    def wrong(self, key: str, expected: str) -> InputError:
        """Returns the error for a value that can't be used."""
        value = self.values.get(key)
        found = f"a list of {len(value)}" if isinstance(value, list | np.ndarray) else printable(repr(value))
        return InputError(f"{key} in {self.path} is {found}: it must be {expected}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise InputError(f"{self.path} has no {key}, which its model needs: choose a complete GGUF file")
        return value


def token_id_of(metadata: Metadata, name: str) -> int | None:
    """Returns the id of a token with a role: "bos", "eos", "padding"; None if the file names none.

    Raises:
        InputError: The vocabulary has no such id.
    """
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in metadata:
        return None
    token_id, num_tokens = metadata.count(key), len(metadata.texts("tokenizer.ggml.tokens"))
    if token_id >= num_tokens:
        raise metadata.wrong(key, f"less than {num_tokens}, the size of the vocabulary")
    return token_id


def token_types(metadata: Metadata) -> list[int]:
    """Returns the type of each token; without types, all are normal.

    Raises:
        InputError: There is not one for each token.
    """
    key, num_tokens = "tokenizer.ggml.token_type", len(metadata.texts("tokenizer.ggml.tokens"))
    types = list(metadata.numbers(key)) if key in metadata else [NORMAL] * num_tokens
    if len(types) != num_tokens:
        raise metadata.wrong(key, f"a number for each of {num_tokens} tokens")
    return types
