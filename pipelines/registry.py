"""The registry of architectures: records that installed packages offer, found by the name in config.json."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from pipelines.config import AUTO
from pipelines.errors import InputError
from pipelines.loading.encodings import ENCODINGS, encoding

ENTRY_POINT_GROUP = "pipelines.architectures"


@dataclass(frozen=True)
class SupportedArchitecture:
    """The registration record of an architecture. Data only."""

    name: str  # as in config.json, "Gemma3ForCausalLM"
    example_repo_ids: tuple[str, ...]
    encodings: Mapping[str, tuple[str, ...]]  # device kind ("cpu", "gpu") -> encodings, the default first
    config: type[Any]  # an ArchConfig
    pipeline_model: type[Any]  # a PipelineModel
    weight_adapters: Mapping[str, Callable[..., Any]]  # format of the files ("safetensors") -> a WeightAdapter
    sizes: str = ""  # as in the models' names, "270M, 1B"
    image_processor: Callable[..., Any] | None = None  # (folder, huggingface_config) -> an ImageProcessor
    lookup_tables: tuple[str, ...] = ()  # weights whose rows are read from the mapped file, unless a GPU has room
    head_weights: tuple[str, ...] = ("embed_tokens.weight", "lm_head.weight")  # those in the head's encoding

    @property
    def input_modalities(self) -> tuple[str, ...]:
        """The modalities that a prompt may have."""
        return ("text",) if self.image_processor is None else ("text", "images")


@dataclass(frozen=True)
class Registry:
    """The architectures of this run, by name."""

    architectures: Mapping[str, SupportedArchitecture]
    problems: tuple[str, ...] = field(default=())  # the reasons why installed ones could not be loaded

    @classmethod
    def load(cls, custom: Iterable[str] = ()) -> Registry:
        """Collects the records of installed packages' entry points, then those of `custom` ("module[:attribute]").

        A custom architecture replaces an installed one of its name. An installed one that is broken is left out, and
        named when a model's architecture is not found.

        Raises:
            InputError: A custom architecture can't be loaded.
        """
        architectures: dict[str, SupportedArchitecture] = {}
        problems = []
        for entry in entry_points(group=ENTRY_POINT_GROUP):
            try:
                found = _records(entry.load())
            except Exception as error:
                problems.append(f"'{entry.value}' could not be loaded ({_describe(error)})")
                continue
            architectures = {record.name: record for record in found} | architectures
        for name in custom:
            architectures |= {record.name: record for record in _load_custom(name)}
        return cls(architectures, tuple(problems))

    def find(self, architectures: Sequence[str]) -> SupportedArchitecture:
        """Returns the record of the first of a checkpoint's `architectures` that is registered.

        Raises:
            InputError: None of them is; the message names those that are.
        """
        for name in architectures:
            if name in self.architectures:
                return self.architectures[name]
        wanted = ", ".join(f"'{name}'" for name in architectures) or "(config.json names none)"
        supported = ", ".join(sorted(self.architectures)) or "none is installed"
        problems = "".join(f"; {problem}" for problem in self.problems)
        raise InputError(f"architecture {wanted} is not supported; supported: {supported}{problems}")


def choose_encoding(
    architecture: SupportedArchitecture, device_kind: str, requested: str, checkpoint_dtype: str | None
) -> str:
    """Returns the encoding of a run: the requested one, or for `AUTO` the checkpoint's if the device runs it.

    Args:
        architecture: The model's record.
        device_kind: "cpu" or "gpu".
        requested: The encoding that the run asks for, or `AUTO`.
        checkpoint_dtype: The type that the checkpoint is stored in, if it is known.

    Raises:
        InputError: The device does not run the architecture in it; the message names the encodings that it runs. Or
            the checkpoint can't be loaded in it.
    """
    encodings = architecture.encodings.get(device_kind, ())
    if not encodings:
        others = ", ".join(other for other, names in architecture.encodings.items() if names)
        raise InputError(f"{architecture.name} does not run on {device_kind}; it runs on: {others}")
    if requested == AUTO:
        return checkpoint_dtype if checkpoint_dtype in encodings else encodings[0]
    if requested not in encodings:
        can_run = ", ".join(encodings)
        raise InputError(f"{architecture.name} does not run in {requested} on {device_kind}; choose one of: {can_run}")
    _check_stored(requested, checkpoint_dtype)
    return requested


def _check_stored(requested: str, checkpoint_dtype: str | None) -> None:
    """Checks that a checkpoint of this type can be loaded in the encoding that the run asks for.

    Raises:
        InputError: It can't, or its weights would be quantized twice.
    """
    if requested == checkpoint_dtype:
        return
    record = encoding(requested)
    if record.needs_quantized_checkpoint:
        raise InputError(f"quantization_encoding {requested} needs a checkpoint that is stored in it: choose another")
    if record.has_blocks and checkpoint_dtype in ENCODINGS and encoding(checkpoint_dtype).has_blocks:
        raise InputError(f"the file is quantized: in {requested} it would be quantized twice; choose {AUTO}")


def _load_custom(name: str) -> tuple[SupportedArchitecture, ...]:
    module, _, attribute = name.partition(":")
    attribute = attribute or "ARCHITECTURES"
    try:
        return _records(getattr(importlib.import_module(module), attribute))
    except AttributeError as error:
        raise InputError(f"custom architecture '{name}': {_describe(error)}; write module:attribute") from error
    except Exception as error:  # code of another package may raise anything
        raise InputError(f"custom architecture '{name}' can't be loaded ({_describe(error)})") from error


def _records(value: object) -> tuple[SupportedArchitecture, ...]:
    records = tuple(value) if isinstance(value, Sequence) else (value,)
    for record in records:
        if not isinstance(record, SupportedArchitecture):
            raise TypeError(f"it holds {type(record).__name__}, not SupportedArchitecture")
    return records


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
