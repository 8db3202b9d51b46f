"""The identity of compiled graphs: all that they follow from, a text for each cause, by the name that messages show."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from max.graph.weights import WeightData

from kv_cache import KVCacheParams
from pipelines.config import AUTO, PipelineConfig
from pipelines.loading.blocks import stored_type
from pipelines.loading.encodings import encoding

if TYPE_CHECKING:
    from pipelines.registry import SupportedArchitecture

UNUSED = ("_name_or_path", "transformers_version")  # fields of a configuration that say where it comes from
OWN_PACKAGES = ("pipelines", "kv_cache")
SOURCES = ("*.py", "*.mojo")


def run_identity(
    config: PipelineConfig,
    architecture: SupportedArchitecture,
    huggingface_config: Any,
    state_dict: Mapping[str, WeightData],
    kv_params: KVCacheParams,
    target: str,
) -> dict[str, str]:
    """Returns all that the graphs of a run follow from.

    Args:
        config: The run, with its encoding chosen.
        architecture: The model's record.
        huggingface_config: The transformers configuration.
        state_dict: The checkpoint's tensors, in the graph's names; their values don't count.
        kv_params: The page groups of the cache.
        target: As `target_of`.
    """
    record = encoding(config.quantization_encoding)
    fields = {name: value for name, value in huggingface_config.to_dict().items() if name not in UNUSED}
    tensors = [[name, [int(dim) for dim in data.shape], stored_type(data).name] for name, data in state_dict.items()]
    return {
        "architecture": architecture.name,
        "config": _hash(json.dumps(fields, sort_keys=True, default=str).encode()),
        "weights": _hash(json.dumps(sorted(tensors)).encode()),
        "quantization_encoding": config.quantization_encoding,
        "head_encoding": record.head.name if config.head_encoding == AUTO else config.head_encoding,
        "activation_encoding": config.chosen_activation_encoding,
        "kv_cache_dtype": ",".join(dict.fromkeys(group.dtype.name for group in kv_params.groups)),
        "devices": ",".join(f"{ref.device_type.value}:{ref.id}" for ref in config.device_refs),
        "target": target,
        "code": code_hash(cls.__module__ for cls in architecture.pipeline_model.__mro__),
        "max": version("max"),
    }


def code_hash(modules: Iterable[str]) -> str:
    """Hash of our sources, kernels included, and of those of the packages that these modules are in.

    Modules of max and of Python don't count: they have versions.
    """
    names = {*OWN_PACKAGES, *(module.partition(".")[0] for module in modules)} - {"max", *sys.stdlib_module_names}
    content = hashlib.sha256()
    for name in sorted(names):
        for path in _sources(name):
            content.update(f"{path.name}\0".encode() + path.read_bytes())
    return content.hexdigest()[:16]


def _sources(package: str) -> list[Path]:
    """Files of a package; the file of a module that is in none."""
    module = sys.modules.get(package)
    file = Path(getattr(module, "__file__", None) or "")
    if file.name != "__init__.py":
        return [file] if file.is_file() else []
    return sorted(path for pattern in SOURCES for path in file.parent.rglob(pattern))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
