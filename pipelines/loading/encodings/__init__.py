"""The encodings that there are: a file each, named as the encoding, whose `RECORD` is all that is known of it.

This module imports none of them by itself: the command offers the names without waiting for MAX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.loading.encoding import Encoding

ENCODINGS: tuple[str, ...] = tuple(module.name for module in iter_modules(__path__))
"""Their names."""

DEFAULT_ENCODINGS = {"cpu": "float32", "gpu": "bfloat16"}
"""For a checkpoint that is stored in none that the device runs."""


def encoding(name: str) -> Encoding:
    """The record of an encoding; KeyError if there is none of that name."""
    if name not in ENCODINGS:
        raise KeyError(name)
    return import_module(f"{__name__}.{name}").RECORD  # type: ignore[no-any-return]


def by_device(names: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Of these encodings those that each kind of device runs, its default first."""
    return {
        kind: tuple(
            sorted((n for n in names if kind in encoding(n).activation_dtypes), key=lambda name: name != default)
        )
        for kind, default in DEFAULT_ENCODINGS.items()
    }
