"""The manifest of compiled graphs: the run that they were made for, each graph's file, and its weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from max.dtype import DType

from pipelines.errors import InputError
from pipelines.loading.blocks import FORMATS, BlockFormat, StoredType
from pipelines.loading.encodings.float8_e4m3fn import Float8Config
from pipelines.loading.weight_spec import WeightSource, WeightSpec

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
GRAPH_NAME = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)
CHECKSUM = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class FileRecord:
    """A file as it was written. sha256: of its content, in hexadecimal."""

    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Describes a file.

        Raises:
            OSError: It can't be read.
        """
        content = path.read_bytes()
        return cls(len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class GraphRecord:
    """A compiled graph: its file, and the weights that it is loaded with."""

    file: FileRecord
    weights: tuple[WeightSpec, ...]


@dataclass(frozen=True)
class Manifest:
    """A set of compiled graphs.

    run: what they follow from, by names that messages show. cpu_features: the instruction sets that a CPU needs to run
    them. graphs: by name. libraries: of the host's own code, by name.
    """

    run: Mapping[str, str]
    cpu_features: frozenset[str]
    graphs: Mapping[str, GraphRecord]
    libraries: Mapping[str, FileRecord]

    def write(self, folder: Path) -> None:
        """Writes it into the folder of its files.

        Raises:
            OSError: It can't be written.
        """
        content = {
            "format": FORMAT_VERSION,
            "run": dict(self.run),
            "cpu_features": sorted(self.cpu_features),
            "graphs": {
                name: dataclasses.asdict(graph.file) | {"weights": [_encode_spec(spec) for spec in graph.weights]}
                for name, graph in self.graphs.items()
            },
            "libraries": {name: dataclasses.asdict(library) for name, library in self.libraries.items()},
        }
        (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads that of a folder.

        Raises:
            InputError: There is none, it can't be read, or it is damaged or of another version of the format.
        """
        path = folder / MANIFEST_NAME
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise InputError(
                f"artifacts (--artifacts): can't read {path} ({error.strerror}): give a folder that `pipelines compile`"
                " has written"
            ) from None
        except (ValueError, RecursionError):
            raise damaged(path, "it isn't JSON") from None
        try:
            if content["format"] != FORMAT_VERSION:
                raise damaged(path, f"it has format {content['format']}, and {FORMAT_VERSION} is known")
            return cls._decode(content)
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise damaged(path, f"{type(error).__name__}: {error}") from None

    @classmethod
    def _decode(cls, content: Mapping[str, Any]) -> Manifest:
        graphs = {
            name: GraphRecord(_decode_file(name, fields), tuple(map(_decode_spec, fields["weights"])))
            for name, fields in content["graphs"].items()
        }
        libraries = {name: _decode_file(name, fields) for name, fields in content["libraries"].items()}
        run = {str(name): str(value) for name, value in content["run"].items()}
        return cls(run, frozenset(map(str, content["cpu_features"])), graphs, libraries)


def damaged(path: Path, why: str) -> InputError:
    """Error about a file of a folder of compiled graphs."""
    return InputError(
        f"artifacts (--artifacts): {path} is damaged ({why}): compile them again with `pipelines compile`"
    )


def _decode_file(name: str, fields: Mapping[str, Any]) -> FileRecord:
    num_bytes, sha256 = fields["num_bytes"], fields["sha256"]
    # A name becomes part of a path.
    assert GRAPH_NAME.fullmatch(name) and type(num_bytes) is int and CHECKSUM.fullmatch(sha256), name
    return FileRecord(num_bytes, sha256)


def _encode_spec(spec: WeightSpec) -> dict[str, Any]:
    """Fields of a specification that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(WeightSpec)}
    fields = {name: getattr(spec, name) for name, default in defaults.items() if getattr(spec, name) != default}
    fields["stored_as"] = spec.stored_as.name
    fields["sources"] = [list(dataclasses.astuple(source)) for source in spec.sources]
    if spec.quant_config is not None:
        fields["quant_config"] = list(spec.quant_config.block)
    return fields


def _decode_spec(fields: Mapping[str, Any]) -> WeightSpec:
    sources = tuple(_source(*source) for source in fields["sources"])
    block = fields.get("quant_config")
    quant_config = None if block is None else Float8Config((int(block[0]), int(block[1])))
    decoded = {"stored_as": _stored_type(fields["stored_as"]), "sources": sources, "quant_config": quant_config}
    return WeightSpec(**{**fields, **decoded})


def _source(name: str, shape: Sequence[int], *rest: int | None) -> WeightSource:
    """A source from all of its fields: a manifest that lacks one is damaged."""
    if len(rest) != len(dataclasses.fields(WeightSource)) - 2:
        raise ValueError(f"the source {name} has {2 + len(rest)} fields")
    return WeightSource(str(name), tuple(map(int, shape)), *rest)  # type: ignore[arg-type]


def _stored_type(name: str) -> StoredType:
    block_format: BlockFormat | None = FORMATS.get(name)
    return DType[name] if block_format is None else block_format
