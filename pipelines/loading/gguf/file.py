"""GGUF files as one model: its shards, its metadata, and its tensors, mapped into memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData

from pipelines.errors import InputError
from pipelines.gguf_metadata import Metadata, printable
from pipelines.loading.blocks import FORMATS, BlockData
from pipelines.loading.gguf.header import GgufHeader, TensorInfo, damaged, read_header
from pipelines.loading.safetensors_file import Array, storage_dtype
from pipelines.loading.weights import WeightAdapter

GgmlType = gguf.GGMLQuantizationType
DTYPES = {GgmlType.F32: DType.float32, GgmlType.F16: DType.float16, GgmlType.BF16: DType.bfloat16}
"""Types of plain tensors, by their number in the file."""
BLOCK_FORMATS = {block_format.ggml_type: block_format for block_format in FORMATS.values()}
ROUTER = ".ffn_gate_inp.weight"
SHARD = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class GgufModel:
    """A model in one GGUF file or several. metadata: that of the first file. headers: of all."""

    metadata: Metadata
    headers: tuple[GgufHeader, ...]
    tensors: Mapping[str, TensorInfo]

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        return [header.path for header in self.headers]

    @property
    def name(self) -> str:
        """The path of the first file, for messages."""
        return str(self.headers[0].path)

    @property
    def architecture(self) -> str:
        """The architecture that the file names, "gemma3" for example."""
        return self.metadata.text("general.architecture")

    @property
    def dtype(self) -> str:
        """The encoding of its matrices: "gguf" if any is in blocks, else "bfloat16" if all are, else "float32".

        Routers don't count: they are in float32 in all files.
        """
        matrices = (tensor for tensor in self.tensors.values() if len(tensor.shape) > 1)
        types = {tensor.ggml_type for tensor in matrices if not tensor.name.endswith(ROUTER)}
        if types - set(DTYPES):
            return "gguf"
        return "bfloat16" if types == {GgmlType.BF16} else "float32"

    def read(self) -> dict[str, WeightData]:
        """Returns its tensors, views of the mapped files.

        Raises:
            InputError: A tensor is of a type that can't be read; the message names it.
        """
        return {name: self.tensor(name) for name in self.tensors}

    def tensor(self, name: str) -> WeightData:
        """Returns one tensor.

        Raises:
            InputError: It is of a type that can't be read.
            KeyError: There is none of that name.
        """
        tensor = self.tensors[name]
        data = next(header.data for header in self.headers if header.path == tensor.path)
        return _weight_data(tensor, data)


def open_gguf(path: Path) -> GgufModel:
    """Reads and checks the headers of a model, and maps its files.

    Args:
        path: The file, or any of its shards.

    Raises:
        InputError: A file is missing, can't be read, is damaged, or belongs to another model.
    """
    first = _first_shard(path)
    header = read_header(first)
    headers = (header, *_other_shards(header))
    tensors: dict[str, TensorInfo] = {}
    for part in headers:
        for tensor in part.tensors:
            if tensor.name in tensors:
                raise damaged(part.path, f"tensor '{printable(tensor.name)}' is in {tensors[tensor.name].path} too")
            tensors[tensor.name] = tensor
    expected = header.metadata.count(gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, len(tensors))
    if len(tensors) != expected:
        raise damaged(first, f"its {len(headers)} files have {len(tensors)} tensors, and should have {expected}")
    return GgufModel(header.metadata, headers, tensors)


def open_gguf_state_dict(model: GgufModel, adapt: WeightAdapter, huggingface_config: Any) -> dict[str, WeightData]:
    """Gives the tensors of a model the graph's names.

    `WeightData.name` keeps the file's name, for messages. A matrix in blocks is BlockData.

    Args:
        model: The mapped files.
        adapt: The architecture's weight adapter for GGUF files.
        huggingface_config: The configuration that the adapter reads.

    Raises:
        InputError: A tensor is unknown, or of a type that can't be read.
    """
    try:
        return adapt(model.read(), huggingface_config)
    except KeyError as error:
        raise InputError(
            f"unexpected tensor '{printable(str(error.args[0]))}' in {model.name}: its architecture doesn't have it"
        ) from None


def first_shards(names: Sequence[str]) -> list[str]:
    """Drops the names of all shards but the first of each model."""
    return [name for name in names if (match := SHARD.fullmatch(name)) is None or int(match["number"]) == 1]


def shard_names(name: str) -> list[str]:
    """Returns the names of all files of a model, of which one is given."""
    match = SHARD.fullmatch(name)
    if match is None:
        return [name]
    return [f"{match['prefix']}-{n:05}-of-{match['count']}.gguf" for n in range(1, int(match["count"]) + 1)]


def _first_shard(path: Path) -> Path:
    first = path.with_name(shard_names(path.name)[0]) if SHARD.fullmatch(path.name) else path
    if first != path and path.is_file() and not first.is_file():
        raise InputError(f"{path} is a part of a model whose first file, {first.name}, is missing: put it beside it")
    return first


def _other_shards(first: GgufHeader) -> list[GgufHeader]:
    """Reads the headers of the files after the first, whose names are the first's but for the number."""
    count = first.metadata.count(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, 1)
    if count <= 1:
        return []
    names = shard_names(first.path.name)
    if len(names) != count:
        raise InputError(
            f"{first.path} is one of {count} files of a model (split.count), which are found by its name only if it "
            f"ends in -00001-of-{count:05}.gguf: give the files their names back"
        )
    paths = [first.path.with_name(name) for name in names[1:]]
    if missing := [path.name for path in paths if not path.is_file()]:
        shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise InputError(f"{len(missing)} of {count} files are missing beside {first.path}: {shown}")
    return [_read_shard(path, number, count) for number, path in enumerate(paths, 1)]


def _read_shard(path: Path, number: int, count: int) -> GgufHeader:
    header = read_header(path)
    found = [header.metadata.count(key, 0) for key in ("split.no", "split.count")]
    if found != [number, count]:
        raise damaged(path, f"it is part {found[0] + 1} of {found[1]} of a model, not part {number + 1} of {count}")
    return header


def _weight_data(tensor: TensorInfo, data: Array) -> WeightData:
    if tensor.ggml_type not in DTYPES and tensor.ggml_type not in BLOCK_FORMATS:
        can = ", ".join((*(GgmlType(number).name.lower() for number in DTYPES), *FORMATS))
        raise InputError(
            f"tensor '{printable(tensor.name)}' in {tensor.path} is {tensor.type_name}, which can't be read "
            f"({can} can): choose a file without it"
        )
    assert tensor.num_bytes is not None
    values = data[tensor.start : tensor.start + tensor.num_bytes]
    if tensor.ggml_type in DTYPES:
        dtype = DTYPES[GgmlType(tensor.ggml_type)]
        return WeightData(
            values.view(storage_dtype(dtype)).reshape(tensor.shape), tensor.name, dtype, Shape(tensor.shape)
        )
    block_format = BLOCK_FORMATS[GgmlType(tensor.ggml_type)]
    rows = values.reshape(*tensor.shape[:-1], block_format.row_bytes(tensor.shape[-1]))
    return BlockData(rows, tensor.name, DType.uint8, Shape(tensor.shape), block_format=block_format)
