"""Reads the header of a GGUF file: its metadata, and the names, types, shapes and places of its tensors.

Every count, length, type and offset is checked against the file before it is used. gguf.GGUFReader is not used here: it
makes views and arrays from whatever the file says, fails with errors of many classes, and takes half a minute for the
262,144 tokens of Gemma. Types, sizes and constants are the gguf package's.

Source: the format's description, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from pipelines.errors import InputError
from pipelines.gguf_metadata import Metadata, printable

VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 65_535
MIN_PAIR_BYTES = 13  # a key's length, a type and the shortest value
MIN_INFO_BYTES = 24  # a name's length, no dimensions, a type and an offset

ValueType = gguf.GGUFValueType
NUMBERS: Mapping[int, str] = {
    ValueType.UINT8: "<u1",
    ValueType.INT8: "<i1",
    ValueType.UINT16: "<u2",
    ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4",
    ValueType.INT32: "<i4",
    ValueType.FLOAT32: "<f4",
    ValueType.BOOL: "<u1",
    ValueType.UINT64: "<u8",
    ValueType.INT64: "<i8",
    ValueType.FLOAT64: "<f8",
}
"""numpy's types of numbers and booleans, by their number in the file."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header describes it.

    shape: outermost dimension first, the reverse of the file's order. ggml_type: its number. start: its first byte in
    the file. num_bytes: None for an unknown type.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    ggml_type: int
    start: int
    num_bytes: int | None

    @property
    def type_name(self) -> str:
        """The name of its type, in lower case."""
        known = self.ggml_type in gguf.GGML_QUANT_SIZES
        return gguf.GGMLQuantizationType(self.ggml_type).name.lower() if known else f"of type {self.ggml_type}"


@dataclass(frozen=True)
class GgufHeader:
    """The header of one file. data: the bytes of the whole file, mapped."""

    path: Path
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    data: npt.NDArray[np.uint8]


def read_header(path: Path) -> GgufHeader:
    """Reads and checks the header of one file, which it maps.

    Raises:
        InputError: The file can't be read, is cut short or breaks a rule of the format.
    """
    mapping = _map(path)
    reader = _Reader(path, mapping)
    num_tensors, num_pairs = _read_counts(reader)
    metadata = Metadata(path, _read_metadata(reader, num_pairs))
    tensors = [_read_tensor(reader) for _ in range(num_tensors)]
    _check_names(path, tensors)
    alignment = metadata.count("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if alignment < 1 or alignment & (alignment - 1):
        raise metadata.wrong("general.alignment", "a power of two")
    placed = _place(path, tensors, -(-reader.position // alignment) * alignment, alignment, len(mapping))
    return GgufHeader(path, metadata, placed, np.frombuffer(mapping, np.uint8))


class _Reader:
    """The place in a header up to which it has been read. Reading past the end of the file raises InputError."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path, self.mapping, self.position, self.size = path, mapping, 0, len(mapping)

    def skip(self, num_bytes: int, what: str) -> int:
        """Moves past some bytes, and returns the position of the first."""
        if num_bytes > self.size - self.position:
            raise damaged(self.path, f"{what} runs past its end")
        self.position += num_bytes
        return self.position - num_bytes

    def uint32(self, what: str) -> int:
        return int(struct.unpack_from("<I", self.mapping, self.skip(4, what))[0])

    def uint64(self, what: str) -> int:
        return int(struct.unpack_from("<Q", self.mapping, self.skip(8, what))[0])

    def name(self, what: str) -> str:
        """Reads a key or the name of a tensor."""
        num_bytes = self.uint64(what)
        if num_bytes > MAX_NAME_BYTES:
            raise damaged(self.path, f"{what} has {num_bytes} bytes")
        return self._text(self.skip(num_bytes, what), what)

    def text(self, what: str) -> str:
        """Reads a string."""
        return self._text(self.skip(self.uint64(what), what), what)

    def texts(self, count: int, what: str) -> list[str]:
        """Reads strings; without a call for each, as vocabularies have hundreds of thousands."""
        mapping, position, size, unpack = self.mapping, self.position, self.size, struct.Struct("<Q").unpack_from
        found = []
        try:
            for _ in range(count):
                (num_bytes,) = unpack(mapping, position)
                position += 8
                if num_bytes > size - position:
                    raise damaged(self.path, f"{what} runs past its end")
                found.append(str(mapping[position : position + num_bytes], "utf-8"))
                position += num_bytes
        except struct.error:
            raise damaged(self.path, f"{what} runs past its end") from None
        except UnicodeDecodeError:
            raise damaged(self.path, f"{what} isn't UTF-8 text") from None
        self.position = position
        return found

    def _text(self, start: int, what: str) -> str:
        try:
            return str(self.mapping[start : self.position], "utf-8")
        except UnicodeDecodeError:
            raise damaged(self.path, f"{what} isn't UTF-8 text") from None

    def numbers(self, type_number: int, count: int, what: str) -> npt.NDArray[Any]:
        """Reads numbers as a view of the file, so that their count costs no memory."""
        dtype = np.dtype(NUMBERS[type_number])
        start = self.skip(count * dtype.itemsize, what)
        values = np.frombuffer(self.mapping, dtype, count, start)
        if type_number != ValueType.BOOL:
            return values
        if values.size and values.max() > 1:
            raise damaged(self.path, f"{what} is neither true nor false")
        return values.view(np.bool_)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            # A private writable mapping, which is never written: Buffer.from_numpy copies read-only arrays.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError:  # a file of zero bytes can't be mapped
        raise damaged(path, "it is empty") from None
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None


def _read_counts(reader: _Reader) -> tuple[int, int]:
    """Reads what comes first, and returns the counts of tensors and of metadata."""
    path, beginning = reader.path, reader.mapping[:20]
    if beginning.startswith(b"version https://git"):
        raise damaged(path, "it is a Git LFS pointer")
    if reader.uint32("its magic number") != gguf.GGUF_MAGIC:
        raise damaged(path, "it doesn't begin with GGUF")
    version = reader.uint32("its version")
    if version and version & 0xFFFF == 0:
        raise InputError(f"{path} is big-endian, which can't be read: choose a little-endian file")
    if version not in VERSIONS:
        raise InputError(f"{path} is of GGUF version {version}, which can't be read (2 and 3 can): convert it again")
    num_tensors, num_pairs = reader.uint64("its count of tensors"), reader.uint64("its count of metadata")
    remaining = reader.size - reader.position
    for count, what, least in (
        (num_tensors, "tensors", MIN_INFO_BYTES),
        (num_pairs, "entries of metadata", MIN_PAIR_BYTES),
    ):
        if count * least > remaining:
            raise damaged(path, f"it has no room for its {count} {what}")
    return num_tensors, num_pairs


def _read_metadata(reader: _Reader, num_pairs: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _ in range(num_pairs):
        key = reader.name("a key of its metadata")
        if key in values:
            raise damaged(reader.path, f"'{printable(key)}' is there twice in its metadata")
        what = f"the value of '{printable(key)}'"
        type_number = reader.uint32(what)
        values[key] = _read_array(reader, what) if type_number == ValueType.ARRAY else _read(reader, type_number, what)
    return values


def _read(reader: _Reader, type_number: int, what: str) -> Any:
    """Reads a string, a number or a boolean."""
    if type_number == ValueType.STRING:
        return reader.text(what)
    if type_number not in NUMBERS:
        raise damaged(reader.path, f"{what} is of type {type_number}, which there isn't")
    value = reader.numbers(type_number, 1, what)[0]
    # The decimal number that was rounded to float32: 1e-06, not 9.999999974752427e-07.
    return float(str(value)) if type_number == ValueType.FLOAT32 else value.item()


def _read_array(reader: _Reader, what: str) -> Any:
    type_number, count = reader.uint32(what), reader.uint64(what)
    if type_number == ValueType.ARRAY:
        raise damaged(reader.path, f"{what} is a list of lists")
    if type_number == ValueType.STRING:
        return reader.texts(count, what)
    if type_number not in NUMBERS:
        raise damaged(reader.path, f"{what} is a list of type {type_number}, which there isn't")
    return reader.numbers(type_number, count, what)


def _read_tensor(reader: _Reader) -> TensorInfo:
    """Reads the description of a tensor; its `start` is still an offset from the header's end."""
    name = reader.name("the name of a tensor")
    what = f"the description of tensor '{printable(name)}'"
    num_dimensions = reader.uint32(what)
    if num_dimensions > MAX_DIMENSIONS:
        raise wrong(reader.path, name, f"its {num_dimensions} dimensions are more than {MAX_DIMENSIONS}")
    shape = tuple(reader.uint64(what) for _ in range(num_dimensions))[::-1]
    if 0 in shape:
        raise wrong(reader.path, name, f"its shape {list(shape)} has a 0")
    ggml_type, offset = reader.uint32(what), reader.uint64(what)
    return TensorInfo(name, reader.path, shape, ggml_type, offset, _num_bytes(reader.path, name, shape, ggml_type))


def _num_bytes(path: Path, name: str, shape: tuple[int, ...], ggml_type: int) -> int | None:
    """Computes the size of a tensor; None for an unknown type."""
    if ggml_type not in gguf.GGML_QUANT_SIZES:
        return None
    num_weights, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(ggml_type)]
    num_columns = shape[-1] if shape else 1
    if num_columns % num_weights:
        raise wrong(path, name, f"its rows of {num_columns} values are no whole blocks of {num_weights}")
    return math.prod(shape) // num_weights * block_bytes


def _check_names(path: Path, tensors: list[TensorInfo]) -> None:
    names = set()
    for tensor in tensors:
        if tensor.name in names:
            raise damaged(path, f"tensor '{printable(tensor.name)}' is there twice")
        names.add(tensor.name)


def _place(
    path: Path, tensors: list[TensorInfo], data_start: int, alignment: int, file_bytes: int
) -> tuple[TensorInfo, ...]:
    """Checks that the tensors lie inside the file, aligned and apart; returns them with their places in the file."""
    placed, previous, end = [], "the header", data_start
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        start, name = data_start + tensor.start, printable(tensor.name)
        if tensor.start % alignment:
            raise wrong(path, name, f"its offset {tensor.start} is no multiple of {alignment}")
        if start < end:
            raise wrong(path, name, f"it overlaps {previous}")
        previous, end = f"tensor '{name}'", start + (tensor.num_bytes or 0)
        if end > file_bytes:
            raise InputError(
                f"{path} is cut short: tensor '{name}' should end at byte {end}, and it has {file_bytes}; "
                "download it again"
            )
        placed.append(TensorInfo(tensor.name, path, tensor.shape, tensor.ggml_type, start, tensor.num_bytes))
    return tuple(placed)


def wrong(path: Path, name: str, why: str) -> InputError:
    """Returns the error for a tensor whose description is wrong."""
    return damaged(path, f"its header is wrong at tensor '{printable(name)}': {why}")


def damaged(path: Path, why: str) -> InputError:
    """Returns the error for a file that breaks a rule of the format."""
    return InputError(f"{path} isn't a GGUF file or is damaged: {why}; download it again")
