"""A GGUF file is read as the format says, and refused in one line where it is damaged; nothing outside it is read."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize
from max.driver import Buffer
from max.dtype import DType

from pipelines.errors import InputError
from pipelines.loading.blocks import FORMATS, BlockData
from pipelines.loading.gguf.file import open_gguf, open_gguf_state_dict
from pipelines.loading.gguf.header import read_header

ValueType = gguf.GGUFValueType
STRING, ARRAY, UINT32, BOOL = (int(ValueType[name]) for name in ("STRING", "ARRAY", "UINT32", "BOOL"))
F32, Q4_0, IQ2_XXS = (int(GGMLQuantizationType[name]) for name in ("F32", "Q4_0", "IQ2_XXS"))


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, type_number: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", type_number) + value


def info(name: str = "a", shape: Sequence[int] = (4,), ggml_type: int = F32, offset: int = 0) -> bytes:
    """The description of a tensor. shape: innermost dimension first, as in the file."""
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", ggml_type, offset)


def file_of(
    pairs: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    num_bytes: int = 64,
    *,
    version: int = 3,
    num_pairs: int | None = None,
    num_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = (len(infos) if num_tensors is None else num_tensors, len(pairs) if num_pairs is None else num_pairs)
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*pairs, *infos])
    return header + bytes(-len(header) % alignment) + bytes(range(num_bytes))


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


RIGHT = file_of([pair("n", UINT32, struct.pack("<I", 7))], [info("a"), info("b", offset=32)])
LIST = struct.pack("<IQ", UINT32, 2) + struct.pack("<II", 1, 2)
TEXTS = struct.pack("<IQ", STRING, 2) + text("x") + text("y")


@pytest.mark.parametrize("version", [2, 3])
def test_a_file(tmp_path: Path, version: int) -> None:
    pairs = [
        pair("count", UINT32, struct.pack("<I", 7)),
        pair("negative", int(ValueType.INT64), struct.pack("<q", -7)),
        pair("epsilon", int(ValueType.FLOAT32), struct.pack("<f", 1e-6)),
        pair("flag", BOOL, b"\x01"),
        pair("text", STRING, text("Größe")),
        pair("list", ARRAY, LIST),
        pair("texts", ARRAY, TEXTS),
    ]
    infos = [info("late", (2, 3), offset=32), info("early", (4,), offset=0)]
    header = read_header(write(tmp_path / "x.gguf", file_of(pairs, infos, version=version)))
    values = dict(header.metadata.values)
    assert values.pop("list").tolist() == [1, 2]
    expected = {"count": 7, "negative": -7, "epsilon": 1e-6, "flag": True, "text": "Größe", "texts": ["x", "y"]}
    assert values == expected
    assert [(tensor.name, tensor.shape, tensor.num_bytes) for tensor in header.tensors] == [
        ("early", (4,), 16),
        ("late", (3, 2), 24),
    ]
    model = open_gguf(tmp_path / "x.gguf").read()
    assert np.asarray(model["late"].data).view(np.uint8).ravel().tolist() == list(range(32, 56))


def test_alignment_and_a_gap(tmp_path: Path) -> None:
    pairs = [pair("general.alignment", UINT32, struct.pack("<I", 4))]
    data = file_of(pairs, [info("a", (1,), offset=0), info("b", (1,), offset=12)], 16, alignment=4)
    model = open_gguf(write(tmp_path / "x.gguf", data)).read()
    assert [np.asarray(t.data).view(np.uint8).tolist() for t in model.values()] == [[0, 1, 2, 3], [12, 13, 14, 15]]


TYPES = ("F32", "F16", "BF16", *(name.upper() for name in FORMATS))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", [(3, 256), (2, 3, 512)])
def test_what_the_gguf_package_writes_is_read(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    ggml_type = GGMLQuantizationType[name]
    num_weights, num_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
    random = np.random.default_rng(0)
    raw = random.integers(0, 60, (*shape[:-1], shape[-1] // num_weights * num_bytes), np.uint8)  # no NaN in any type
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("norm", np.arange(5, dtype=np.float32))
    writer.add_tensor("x", raw, raw_dtype=ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = open_gguf(tmp_path / "x.gguf")
    data = model.read()["x"]
    array = np.asarray(data.data)
    assert tuple(int(dim) for dim in data.shape) == shape
    assert array.reshape(raw.shape[0], -1).view(np.uint8).tobytes() == raw.tobytes()
    if isinstance(data, BlockData):
        assert (data.block_format.name, data.dtype, array.shape) == (name.lower(), DType.uint8, raw.shape)
        np.testing.assert_array_equal(data.block_format.dequantize(array), dequantize(raw, ggml_type))
    else:
        assert (data.dtype, array.shape) == (
            {"F32": DType.float32, "F16": DType.float16}.get(name, DType.bfloat16),
            shape,
        )
    assert model.dtype == {"F32": "float32", "F16": "float32", "BF16": "bfloat16"}.get(name, "gguf")


def test_tensors_are_views_that_buffers_alias(tmp_path: Path) -> None:
    array = np.asarray(open_gguf(write(tmp_path / "x.gguf", RIGHT)).read()["b"].data)
    assert array.base is not None and array.flags.writeable  # a copy would be made of what can't be written
    buffer = Buffer.from_numpy(array)
    array[0] = 5
    assert buffer.to_numpy()[0] == 5
    assert (tmp_path / "x.gguf").read_bytes() == RIGHT  # the mapping is private


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "it is empty"),
        (b"GGUF", "its version runs past its end"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(60), "it doesn't begin with GGUF"),
        (file_of(version=1), "of GGUF version 1, which can't be read (2 and 3 can)"),
        (file_of(version=4), "of GGUF version 4"),
        (file_of(version=3 << 24), "is big-endian"),
        (file_of(num_tensors=2**60), f"it has no room for its {2**60} tensors"),
        (file_of(num_pairs=2**63), f"it has no room for its {2**63} entries of metadata"),
        (file_of([pair("k", 13, b"")]), "the value of 'k' is of type 13, which there isn't"),
        (file_of([pair("k", STRING, struct.pack("<Q", 2**62))]), "the value of 'k' runs past its end"),
        (file_of([struct.pack("<Q", 2**40)]), f"a key of its metadata has {2**40} bytes"),
        (file_of([pair("k", STRING, text(b"\xff\xfe"))]), "the value of 'k' isn't UTF-8 text"),
        (file_of([text(b"\xff") + struct.pack("<II", UINT32, 1)]), "a key of its metadata isn't UTF-8 text"),
        (file_of([pair("k", BOOL, b"\x02")]), "the value of 'k' is neither true nor false"),
        (file_of([pair("k", UINT32, bytes(4))] * 2), "'k' is there twice in its metadata"),
        (file_of([pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "the value of 'k' is a list of lists"),
        (file_of([pair("k", ARRAY, struct.pack("<IQ", 77, 1))]), "the value of 'k' is a list of type 77"),
        (file_of([pair("k", ARRAY, struct.pack("<IQ", UINT32, 2**62))]), "the value of 'k' runs past its end"),
        (file_of([pair("k", ARRAY, struct.pack("<IQ", STRING, 2**62))]), "the value of 'k' runs past its end"),
        (file_of([pair("k", ARRAY, struct.pack("<IQ", BOOL, 1) + b"\x07")]), "neither true nor false"),
        (file_of([pair("k", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"\xff"))]), "isn't UTF-8 text"),
        (file_of([pair("general.alignment", UINT32, struct.pack("<I", 48))]), "it must be a power of two"),
        (file_of([pair("general.alignment", UINT32, bytes(4))]), "it must be a power of two"),
        (file_of([pair("general.alignment", STRING, text("x"))]), "general.alignment"),
        (file_of((), [info("a", (1,) * 5)]), "at tensor 'a': its 5 dimensions are more than 4"),
        (file_of((), [info("a", (4, 0))]), "at tensor 'a': its shape [0, 4] has a 0"),
        (file_of((), [info("a", (2**63, 2**63))]), "tensor 'a' should end at byte"),
        (file_of((), [info("a", (48,), Q4_0)]), "at tensor 'a': its rows of 48 values are no whole blocks of 32"),
        (file_of((), [info("a"), info("a", offset=32)]), "tensor 'a' is there twice"),
        (file_of((), [info("a", offset=8)]), "at tensor 'a': its offset 8 is no multiple of 32"),
        (file_of((), [info("a", offset=2**63)]), "is cut short: tensor 'a' should end at byte"),
        (file_of((), [info("a", (9,)), info("b", offset=32)]), "at tensor 'b': it overlaps tensor 'a'"),
        (file_of((), [info("a", (17,))]), "is cut short: tensor 'a' should end at byte 132, and it has 128"),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, expected: str) -> None:
    path = write(tmp_path / "x.gguf", data)
    message = refusal(lambda: open_gguf(path))
    assert expected in message
    assert str(path) in message


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    assert "can't read" in refusal(lambda: open_gguf(tmp_path / "nowhere.gguf"))
    assert "can't read" in refusal(lambda: open_gguf(tmp_path))


def test_names_are_shown_without_control_characters(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", file_of((), [info("a\x1b[31m\n" + "b" * 900, (1,) * 5)]))
    message = refusal(lambda: open_gguf(path))
    assert "a?[31m?bbb" in message
    assert len(message) < 400


@pytest.mark.parametrize(("ggml_type", "name"), [(IQ2_XXS, "is iq2_xxs"), (4, "is of type 4"), (999, "is of type 999")])
def test_types_that_can_not_be_read(tmp_path: Path, ggml_type: int, name: str) -> None:
    infos = [info("blk.0.ffn_down.weight", (256,), ggml_type)]
    model = open_gguf(write(tmp_path / "x.gguf", file_of((), infos, 128)))
    message = refusal(lambda: open_gguf_state_dict(model, lambda tensors, config: tensors, None))
    assert f"tensor 'blk.0.ffn_down.weight' in {tmp_path / 'x.gguf'} {name}, which can't be read (" in message
    assert all(known in message for known in ("f32", "bf16", *FORMATS))


def test_a_tensor_that_the_architecture_does_not_have(tmp_path: Path) -> None:
    def adapt(tensors: Any, config: Any) -> Any:
        raise KeyError("b")

    model = open_gguf(write(tmp_path / "x.gguf", RIGHT))
    message = refusal(lambda: open_gguf_state_dict(model, adapt, None))
    assert message == f"unexpected tensor 'b' in {tmp_path / 'x.gguf'}: its architecture doesn't have it"


SMALL = file_of(
    [
        pair("general.alignment", UINT32, struct.pack("<I", 8)),
        pair("l", ARRAY, LIST),
        pair("t", ARRAY, TEXTS),
        pair("s", STRING, text("hello")),
        pair("b", BOOL, b"\x01"),
    ],
    [info("a", (2, 2)), info("b", (32,), Q4_0, 16), info("c", (1,), F32, 40)],
    48,
    alignment=8,
)


def result_of(path: Path) -> str | list[str]:
    """The message of the only error that there may be, or the names of the tensors, all of whose bytes were read."""
    try:
        tensors = open_gguf(path).read()
    except InputError as error:
        assert "\n" not in str(error)
        return str(error)
    for data in tensors.values():
        np.asarray(data.data).tobytes()
    return list(tensors)


def test_every_truncation(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    end = len(SMALL) - 4  # the last tensor has 4 bytes, 4 more follow
    for size in range(len(SMALL)):
        result = result_of(write(path, SMALL[:size]))
        assert isinstance(result, str) == (size < end), (size, result)
    assert result_of(write(path, SMALL)) == ["a", "b", "c"]


@pytest.mark.slow
def test_damaged_bytes(tmp_path: Path) -> None:
    """Each byte of the header is changed in several ways, then several at once: an error, or a file that is valid."""
    path, random = tmp_path / "x.gguf", np.random.default_rng(0)
    positions = [[position] for position in range(len(SMALL) - 48)] * 6
    positions += [list(random.integers(0, len(SMALL) - 48, 1 + count % 5)) for count in range(1000)]
    num_refused = 0
    for changed in positions:
        data = bytearray(SMALL)
        for position in changed:
            data[position] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, int(random.integers(256))]))
        num_refused += isinstance(result_of(write(path, bytes(data))), str)
    assert num_refused > len(positions) // 2


def test_absurd_counts_take_no_memory(tmp_path: Path) -> None:
    """In a process that may have little memory: what a count promises must not be allocated."""
    program = """
import resource, sys
from pathlib import Path
from pipelines.loading.gguf.header import read_header
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
for path in sys.argv[1:]:
    try:
        read_header(Path(path))
    except ValueError as error:
        print(type(error).__name__)
"""
    count = 2**31
    damaged = [
        file_of([pair("k", ARRAY, struct.pack("<IQ", type_number, count))])
        for type_number in (STRING, UINT32, BOOL, int(ValueType.FLOAT64))
    ]
    damaged += [file_of(num_tensors=count), file_of(num_pairs=count), file_of((), [info("a", (count, count))])]
    paths = [str(write(tmp_path / f"{number}.gguf", data)) for number, data in enumerate(damaged)]
    run = [sys.executable, "-c", program, *paths]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == ["InputError"] * len(paths)


def shard(number: int, count: int, name: str, total: int = 3) -> bytes:
    keys = {"split.no": number, "split.count": count, "split.tensors.count": total}
    pairs = [pair(key, UINT32, struct.pack("<I", value)) for key, value in keys.items()]
    return file_of(pairs, [info(name)])


def write_shards(folder: Path, count: int = 3) -> list[Path]:
    return [
        write(folder / f"m-{number + 1:05}-of-{count:05}.gguf", shard(number, count, f"t{number}"))
        for number in range(count)
    ]


def test_shards_are_found_from_any(tmp_path: Path) -> None:
    paths = write_shards(tmp_path)
    for path in paths:
        model = open_gguf(path)
        assert model.paths == paths
        assert sorted(model.read()) == ["t0", "t1", "t2"]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path)
    paths[1].unlink()
    message = refusal(lambda: open_gguf(paths[0]))
    assert "1 of 3 files are missing" in message and paths[1].name in message and paths[2].name not in message
    paths[0].unlink()
    assert f"{paths[0].name}, is missing" in refusal(lambda: open_gguf(paths[2]))


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("m-00002-of-00003.gguf", shard(2, 3, "t1"), "it is part 3 of 3 of a model, not part 2 of 3"),
        ("m-00002-of-00003.gguf", shard(1, 4, "t1"), "it is part 2 of 4 of a model, not part 2 of 3"),
        ("m-00002-of-00003.gguf", shard(1, 3, "t0"), "tensor 't0' is in"),
        ("m-00001-of-00003.gguf", shard(0, 3, "t0", total=7), "have 3 tensors, and should have 7"),
        ("m-00001-of-00003.gguf", shard(0, 2**31, "t0"), f"one of {2**31} files of a model"),
    ],
)
def test_shards_of_other_models(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    paths = write_shards(tmp_path)
    write(tmp_path / name, data)
    assert expected in refusal(lambda: open_gguf(paths[0]))


def test_a_shard_under_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", shard(0, 3, "t0"))
    assert "ends in -00001-of-00003.gguf" in refusal(lambda: open_gguf(path))
