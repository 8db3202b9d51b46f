"""The encodings: one module each, named as the encoding, whose `RECORD` holds everything that depends on it.

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
"""Names of the encodings."""

DEFAULT_ENCODINGS = {"cpu": "float32", "gpu": "bfloat16"}
"""Encodings by device kind of a checkpoint that is stored in none that the device runs."""

ACTIVATION_ENCODINGS = ("float32", "bfloat16", "int8")
"""Types to which products on CPU round activations; which of them an encoding has, its record knows."""

QUANT_METHODS = {"fp8": "float8_e4m3fn"}
"""Encodings by `quantization_config.quant_method` of config.json."""


def encoding(name: str) -> Encoding:
    """Returns the record of an encoding.

    Raises:
        KeyError: There is none of that name.
    """
    if name not in ENCODINGS:
        raise KeyError(name)
    return import_module(f"{__name__}.{name}").RECORD  # type: ignore[no-any-return]


def by_device(names: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Sorts encodings by the device kinds that run them, the default of each first."""
    return {
        device_kind: tuple(
            sorted((n for n in names if device_kind in encoding(n).activation_dtypes), key=lambda name: name != default)
        )
        for device_kind, default in DEFAULT_ENCODINGS.items()
    }
