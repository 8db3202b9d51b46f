"""The encodings of a model's matrices: which one each matrix is in, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from max.dtype import DType

from pipelines.loading.block_encoding import BlockEncoding
from pipelines.loading.blocks import FORMATS, StoredType
from pipelines.loading.encoding import UniformEncoding
from pipelines.loading.encodings import ENCODINGS, encoding
from pipelines.loading.encodings.gguf import Joined
from pipelines.loading.weight_spec import WeightSource


def matrix(rows: int, columns: int, name: str = "w") -> WeightSource:
    return WeightSource(name, (rows, columns))


def name_of(
    name: str, sources: Sequence[WeightSource], num_shards: int = 1, stored: Mapping[str, StoredType] | None = None
) -> str:
    """The encoding that a matrix has in a model of this one."""
    found = encoding(name).of_matrix(sources, num_shards, stored or {}, None)
    assert isinstance(found, UniformEncoding)
    return found.name


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("q4_k", 512, "q4_k"),
        ("q4_k", 1152, "q5_0"),
        ("q4_k", 48, "bfloat16"),
        ("q5_k", 512, "q5_k"),
        ("q5_k", 1152, "q5_1"),
        ("q6_k", 768, "q6_k"),
        ("q6_k", 1152, "q8_0"),
        ("q6_k", 48, "bfloat16"),
        ("q8_0", 1152, "q8_0"),
        ("q8_0", 40, "bfloat16"),
        ("q5_0", 96, "q5_0"),
        ("q5_1", 96, "q5_1"),
        ("q4_1", 96, "q4_1"),
        ("q4_0", 96, "q4_0"),
        ("q4_0", 80, "bfloat16"),
        ("bfloat16", 7, "bfloat16"),
    ],
)
def test_rows_that_are_no_whole_blocks_are_in_the_next_encoding(name: str, columns: int, expected: str) -> None:
    assert name_of(name, [matrix(8, columns)]) == expected
    assert name_of(name, [matrix(8, columns), matrix(3, columns)]) == expected


def test_a_block_is_not_cut_between_devices() -> None:
    """512 columns on four devices are 128 each: no whole block of 256, but four of 32."""
    split = WeightSource("w", (8, 512), axis=1, units=8)
    assert [name_of("q4_k", [split], n) for n in (1, 2, 4)] == ["q4_k", "q4_k", "q5_0"]


@pytest.mark.parametrize("name", FORMATS)
def test_memory_is_counted_in_blocks(name: str) -> None:
    """The gguf package's own sizes; rows of 48 fall back to 2 bytes a weight."""
    block_format = FORMATS[name]
    expected = 1000 * 512 // block_format.num_weights * block_format.num_bytes
    assert encoding(name).num_bytes([1000, 512], DType.bfloat16) == expected
    assert encoding(name).num_bytes([1000, 48], DType.bfloat16) == 1000 * 48 * 2
    assert encoding("gguf").num_bytes([1000, 512], block_format) == expected
    assert encoding("gguf").num_bytes([1000, 512], DType.float32) == 1000 * 512 * 4


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "q8_0"])
def test_the_head_has_8_bits_and_towers_have_16(name: str) -> None:
    record = encoding(name)
    assert record.head == encoding("q8_0")
    assert record.tower == encoding("bfloat16")
    assert encoding("bfloat16").head == encoding("bfloat16")


def test_activations_are_those_of_the_fallback_and_the_head_too() -> None:
    record = encoding("q4_k").with_activations(DType.float32)
    for other in (record.head, record.of_matrix([matrix(8, 96)], 1, {}, None), record):
        assert isinstance(other, BlockEncoding)
        assert other.product_dtype == DType.float32
    assert encoding("q4_k").head == encoding("q8_0")  # the record itself has not changed


def test_an_encoding_keeps_its_activations_if_it_does_not_have_the_type() -> None:
    for name, dtype in (("float32", DType.int8), ("bfloat16", DType.int8), ("q8_0", DType.bfloat16)):
        assert encoding(name).with_activations(dtype) is encoding(name)
    stored = {"a": FORMATS["q8_0"], "b": DType.bfloat16, "c": DType.float32}
    gguf = encoding("gguf").with_activations(DType.bfloat16)
    records = [gguf.of_matrix([matrix(8, 512, name)], 1, stored, None) for name in stored]
    assert [record.product_dtype for record in records if isinstance(record, UniformEncoding)] == [
        DType.int8,
        DType.bfloat16,
        DType.float32,
    ]


def test_a_gguf_file_decides_for_each_matrix() -> None:
    stored = {"a": FORMATS["q4_k"], "b": FORMATS["q6_k"], "c": DType.bfloat16, "d": DType.float16, "e": DType.float32}
    names = [name_of("gguf", [matrix(8, 512, name)], stored=stored) for name in stored]
    assert names == ["q4_k", "q6_k", "bfloat16", "float32", "float32"]


def test_neighbours_of_one_type_are_one_matrix_and_others_are_joined() -> None:
    stored = {"q": FORMATS["q4_k"], "k": FORMATS["q4_k"], "v": FORMATS["q6_k"]}
    q, k, v = (matrix(8, 512, name) for name in stored)
    gguf = encoding("gguf")
    assert name_of("gguf", [q, k], stored=stored) == "q4_k"
    joined = gguf.of_matrix([q, k, v], 1, stored, None)
    assert isinstance(joined, Joined)
    assert [(part.name, count) for part, count in joined.runs if isinstance(part, BlockEncoding)] == [
        ("q4_k", 2),
        ("q6_k", 1),
    ]
    float_gguf = gguf.with_activations(DType.float32)
    parts = float_gguf.of_matrix([q, k, v], 1, stored, None)
    assert isinstance(parts, Joined)
    assert all(part.product_dtype == DType.float32 for part, _ in parts.runs if isinstance(part, BlockEncoding))


def test_a_tensor_that_is_missing_is_left_to_the_check_of_the_weights() -> None:
    assert name_of("gguf", [matrix(8, 512, "absent")]) == "float32"


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_record_knows_its_name(name: str) -> None:
    assert encoding(name).name == name
