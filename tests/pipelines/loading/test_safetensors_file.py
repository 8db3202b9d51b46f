"""A safetensors file is read as the format says, and refused in one line where it is not one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from max.dtype import DType
from safetensors.numpy import save_file

from pipelines.errors import InputError
from pipelines.loading.safetensors_file import read_tensors

MAX_INT64 = 2**63 - 1


def write(path: Path, header: str | bytes, num_bytes: int = 0, header_bytes: int | None = None) -> Path:
    header = header if isinstance(header, bytes) else header.encode()
    length = len(header) if header_bytes is None else header_bytes
    path.write_bytes(length.to_bytes(8, "little") + header + bytes(range(num_bytes)))
    return path


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        list(read_tensors(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert "download it again" in message
    return message


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    arrays = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scalar": np.array(7, np.int64),
        "empty": np.empty((0, 4), np.float16),
        "bytes": np.arange(3, dtype=np.uint8),
    }
    save_file(arrays, tmp_path / "x.safetensors", {"format": "pt"})
    read = {tensor.name: tensor.array() for tensor in read_tensors(tmp_path / "x.safetensors")}
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_tensors_come_in_any_order_and_without_any(tmp_path: Path) -> None:
    header = {"b": entry([1], [2, 6]), "__metadata__": {"format": "pt"}, "a": entry([1], [0, 2], "BF16")}
    first, second = read_tensors(write(tmp_path / "x", json.dumps(header) + "   ", 6))
    assert (first.name, first.data.tolist(), second.name, second.dtype) == ("b", [2, 3, 4, 5], "a", DType.bfloat16)
    assert list(read_tensors(write(tmp_path / "x", "{}"))) == []


def test_a_type_that_max_lacks_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    (tensor,) = read_tensors(write(tmp_path / "x", json.dumps({"a": entry([3], [0, 3], "F6_E2M3")}), 3))
    with pytest.raises(InputError, match=r"tensor 'a' in .* has type F6_E2M3"):
        tensor.array()


@pytest.mark.parametrize(
    ("shape", "offsets", "words"),
    [
        ([1] * 33, [0, 4], "33 dimensions"),
        ([1] * 100_000, [0, 4], "100000 dimensions"),
        ([2**40, 2**40], [0, 4], "has 4 bytes"),
        ([2**62, 4], [0, 0], "has 0 bytes"),  # 0 in 64 bits
        ([MAX_INT64] * 32, [0, 4], "has 4 bytes"),
        ([10**4000, 10**4000], [0, 8], "shape"),
        ([0, 2**62, 2**62], [0, 0], "too large"),
        ([0, 2**80], [0, 0], "shape"),
        ([3], [0, 8], "of shape [3] has 8 bytes, not 12"),
        ([1], [0, 8], "of shape [1] has 8 bytes, not 4"),
        ([], [0, 8], "has 8 bytes"),
        ([0], [0, 8], "has 8 bytes"),
        ([2.0], [0, 8], "shape"),
        ([2, True], [0, 8], "shape"),
        ([-2], [0, 8], "shape"),
        ([-1, -2], [0, 8], "shape"),
        (["2"], [0, 8], "shape"),
        ([[2]], [0, 8], "shape"),
        (2, [0, 8], "shape"),
        ("2", [0, 8], "shape"),
        (None, [0, 8], "shape"),
        ({"2": 2}, [0, 8], "shape"),
        ([2], [0, 10**4000], "data_offsets"),
        ([2], [0, 8.0], "data_offsets"),
        ([2], [False, 8], "data_offsets"),
        ([2], [-8, 0], "data_offsets"),
        ([2], [8, 0], "data_offsets"),
        ([2], [0, 8, 8], "data_offsets"),
        ([2], [8], "data_offsets"),
        ([2], "08", "data_offsets"),
        ([2], None, "data_offsets"),
        ([2], {"0": 0, "8": 8}, "data_offsets"),
        ([2], [8, 16], "8 bytes before"),
        ([0], [5, 5], "5 bytes before"),
        ([2], [MAX_INT64 - 8, MAX_INT64], "bytes before"),
    ],
)
def test_entries_that_can_not_be(tmp_path: Path, shape: Any, offsets: Any, words: str) -> None:
    message = refusal(write(tmp_path / "x", json.dumps({"layer.weight": entry(shape, offsets)}), 8))
    assert "'layer.weight'" in message
    assert words in message
    assert len(message) < 2000 + len(str(tmp_path))


@pytest.mark.parametrize("changes", [{"dtype": 32}, {"dtype": None}, {"dtype": ["F32"]}])
def test_a_type_that_is_no_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    message = refusal(write(tmp_path / "x", json.dumps({"a": entry() | changes}), 8))
    assert "'a'" in message and "dtype" in message


@pytest.mark.parametrize("value", [None, 1, [], "x", {}, {"dtype": "F32"}, {"dtype": "F32", "shape": [2]}])
def test_an_entry_that_is_none(tmp_path: Path, value: Any) -> None:
    assert "'a'" in refusal(write(tmp_path / "x", json.dumps({"a": value}), 8))


@pytest.mark.parametrize(
    ("offsets", "num_bytes", "words"),
    [
        ([(0, 8), (4, 12)], 12, "'b'"),
        ([(0, 8), (0, 8)], 8, "'b'"),
        ([(4, 12), (0, 8)], 12, "'a'"),
        ([(0, 8), (12, 20)], 20, "'b'"),
        ([(8, 16), (20, 28)], 28, "8 bytes before tensor 'a'"),
        ([(0, 8), (8, 16)], 20, "4 bytes after its last tensor"),
    ],
)
def test_ranges_that_overlap_or_leave_bytes_out(
    tmp_path: Path, offsets: list[tuple[int, int]], num_bytes: int, words: str
) -> None:
    header = {name: entry(offsets=pair) for name, pair in zip("ab", offsets, strict=True)}
    assert words in refusal(write(tmp_path / "x", json.dumps(header), num_bytes))


@pytest.mark.parametrize(("stop", "missing"), [(8, 1), (8, 8)])
def test_a_file_that_is_cut_short(tmp_path: Path, stop: int, missing: int) -> None:
    path = write(tmp_path / "x", json.dumps({"a": entry([stop // 4], [0, stop])}), stop - missing)
    size = path.stat().st_size
    assert f"cut short: it should have {size + missing} bytes and has {size}" in refusal(path)


def test_names_that_are_there_twice(tmp_path: Path) -> None:
    one = json.dumps(entry())
    assert "'a' is there twice" in refusal(write(tmp_path / "x", f'{{"a": {one}, "a": {one}}}', 8))
    twice = '{"a": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}'
    assert "'dtype' is there twice" in refusal(write(tmp_path / "x", twice, 8))


@pytest.mark.parametrize(
    ("header", "header_bytes", "words"),
    [
        ("", 0, "no header"),
        ("{}", 0, "no header"),
        ("{}", 3, "cut short"),
        ("{}", 100_000_000, "cut short"),
        ("{}", 100_000_001, "no header"),
        ("{}", 2**63, "no header"),
        ("{}", 2**64 - 1, "no header"),
        ("{", None, "JSON"),
        ("[]", None, "JSON object"),
        ("[" * 100_000, None, "JSON"),
        ("null", None, "JSON object"),
        (b"\xff\xff", None, "JSON"),
        ('{"a": {}}'.encode("utf-16"), None, "JSON"),
        (f'{{"a": {"9" * 5000}}}', None, "JSON"),
    ],
)
def test_headers_that_are_none(tmp_path: Path, header: str | bytes, header_bytes: int | None, words: str) -> None:
    assert words in refusal(write(tmp_path / "x", header, header_bytes=header_bytes))


@pytest.mark.parametrize("content", [b"", b"\0", b"\2\0\0\0\0\0\0"])
def test_files_that_are_shorter_than_any(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    refusal(tmp_path / "x")


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "Git LFS" in refusal(tmp_path / "x")
