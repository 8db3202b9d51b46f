"""Weights on their way from a safetensors file to the graph: exact values, exact shards, exact complaints."""

from __future__ import annotations

import dataclasses
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
from max.driver import CPU, Buffer
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData
from safetensors.torch import save_file

from pipelines.errors import InputError
from pipelines.loading import weights
from pipelines.loading.blocks import FORMATS, BlockData, BlockFormat
from pipelines.loading.encodings.float8_e4m3fn import Float8Config
from pipelines.loading.weight_spec import WeightSource, WeightSpec
from pipelines.loading.weights import check_weights, materialize, rename


def whole(name: str, shape: tuple[int, ...], dtype: DType = DType.float32) -> WeightSpec:
    return WeightSpec(name, dtype, (WeightSource(name, shape),))


def open_state_dict(paths: list[Path], adapt_name: Callable[[str], str | None]) -> dict[str, WeightData]:
    return weights.open_state_dict(paths, lambda tensors, config: rename(tensors, adapt_name), None)


def write(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def make(path: Path, spec: WeightSpec) -> Any:
    state_dict = open_state_dict([path], str)
    check_weights([spec], state_dict)
    return materialize([spec], state_dict, [CPU()] * 8)[spec.name]


def bits(value: Any) -> np.ndarray[Any, Any]:
    """The bits of a bfloat16 Buffer."""
    assert isinstance(value, Buffer)
    assert value.dtype == DType.bfloat16
    return value.view(DType.uint16, list(value.shape)).to_numpy()


# Every 16-bit pattern, NaN payloads, infinities and subnormals included.
ALL_16_BITS = torch.from_numpy(np.arange(2**16, dtype=np.uint16).reshape(256, 256))


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    path = write(tmp_path, w=ALL_16_BITS.view(torch.bfloat16))
    made = make(path, whole("w", (256, 256)))
    assert np.array_equal(made.view(np.uint32), np.arange(2**16, dtype=np.uint32).reshape(256, 256) << 16)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # signalling NaNs among the patterns
def test_float16_is_widened_exactly(tmp_path: Path) -> None:
    half = ALL_16_BITS.view(torch.float16)
    made = make(write(tmp_path, w=half), whole("w", (256, 256)))
    assert np.array_equal(made, half.float().numpy(), equal_nan=True)


def test_float32_is_rounded_to_bfloat16_as_torch_does(tmp_path: Path) -> None:
    random = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    ties = (np.arange(2**16, dtype=np.uint32) << 16) + np.uint32(0x8000)
    edges = np.array([0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x80000000, 1, 0x3F808001, 0x3F807FFF], np.uint32)
    values = torch.from_numpy(np.concatenate([random, ties, edges]).view(np.float32))
    made = bits(make(write(tmp_path, w=values), whole("w", values.shape, DType.bfloat16)))
    is_nan = torch.isnan(values).numpy()
    assert np.array_equal(made[~is_nan], values.bfloat16().view(torch.uint16).numpy()[~is_nan])
    assert torch.isnan(torch.from_numpy(made).view(torch.bfloat16)[is_nan]).all()


@pytest.mark.parametrize("shape", [(1001, 7), (2, 999), (1000,), (3, 5, 40), (), (0, 4)])
def test_a_weight_cast_in_many_slabs_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr("pipelines.loading.weights.CHUNK_SIZE", 100)
    monkeypatch.setattr("pipelines.loading.weights.CHUNKS_PER_SLAB", 3)
    values = torch.randn(shape).bfloat16()
    made = make(write(tmp_path, w=values), whole("w", shape))
    assert np.array_equal(made, values.float().numpy())


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs the resident size of a mapping")
def test_a_cast_tensor_leaves_none_of_its_file_in_memory(tmp_path: Path) -> None:
    path = write(tmp_path, w=torch.zeros(1 << 20, dtype=torch.bfloat16))
    state_dict = open_state_dict([path], str)

    def resident_bytes() -> int:
        return sum(int(part.rss) for part in psutil.Process().memory_maps(grouped=False) if part.path == str(path))

    assert np.asarray(state_dict["w"].data).sum() == 0  # reads all of it
    assert resident_bytes() >= 2 << 20
    made = materialize([whole("w", (1 << 20,))], state_dict, [CPU()] * 8)
    assert resident_bytes() == 0
    assert not np.any(made["w"])


@pytest.mark.parametrize("num_shards", [1, 2, 4, 8])
def test_joined_heads_are_spread_over_devices(tmp_path: Path, num_shards: int) -> None:
    """8 query heads and 2 key heads of 4 rows: beyond 2 devices, neighbours hold the same key head."""
    q, k = torch.randn(32, 6), torch.randn(8, 6)
    state_dict = open_state_dict([write(tmp_path, q=q.bfloat16(), k=k.bfloat16())], str)
    q_rows, k_rows = 32 // num_shards, max(4, 8 // num_shards)
    sources = (WeightSource("q", (32, 6), axis=0, units=8), WeightSource("k", (8, 6), axis=0, units=2))
    for shard in range(num_shards):
        spec = WeightSpec("qk", DType.float32, sources, shard, num_shards)
        assert spec.shape == (q_rows + k_rows, 6)
        check_weights([spec], state_dict)
        k_start = shard * 2 // num_shards * 4 if num_shards > 1 else 0
        expected = torch.cat([q[shard * q_rows :][:q_rows], k[k_start:][:k_rows]]).bfloat16().float()
        assert np.array_equal(materialize([spec], state_dict, [CPU()] * 8)["qk"], expected.numpy())  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_are_spread_over_devices(tmp_path: Path, dtype: torch.dtype) -> None:
    o = torch.randn(5, 12).to(dtype)
    state_dict = open_state_dict([write(tmp_path, o=o)], str)
    source = WeightSource("o", (5, 12), axis=1, units=6)
    specs = [WeightSpec(f"o{i}", DType.float32, (source,), i, 3) for i in range(3)]
    assert [spec.shape for spec in specs] == [(5, 4)] * 3
    made = materialize(specs, state_dict, [CPU()] * 8)
    assert np.array_equal(np.concatenate([made[f"o{i}"] for i in range(3)], 1), o.float().numpy())
    assert all(array.flags.c_contiguous for array in made.values())  # type: ignore[union-attr]


@pytest.mark.parametrize(("num_shards", "num_rows"), [(1, 37), (2, 20), (3, 16), (4, 12), (16, 4)])
def test_rows_that_do_not_divide_are_padded_with_zeros(tmp_path: Path, num_shards: int, num_rows: int) -> None:
    """Shards are equally long, multiples of 4; of 16 the last 6 are padding alone."""
    rows = torch.randn(37, 6)
    state_dict = open_state_dict([write(tmp_path, v=rows)], str)
    source = WeightSource("v", (37, 6), axis=0, units=37, padding=4)
    specs = [WeightSpec(f"v{i}", DType.float32, (source,), i, num_shards) for i in range(num_shards)]
    assert {spec.shape for spec in specs} == {(num_rows, 6)}
    check_weights(specs, state_dict)
    made = materialize(specs, state_dict, [CPU()] * num_shards)
    joined = np.concatenate([np.asarray(made[spec.name]) for spec in specs])
    assert np.array_equal(joined[:37], rows.numpy())
    assert len(joined) == num_shards * num_rows and not joined[37:].any()


def test_padded_rows_in_two_bytes_are_zeros(tmp_path: Path) -> None:
    rows = torch.randn(5, 8).bfloat16()
    state_dict = open_state_dict([write(tmp_path, v=rows)], str)
    spec = WeightSpec("v", DType.bfloat16, (WeightSource("v", (5, 8), axis=0, units=5, padding=2),), 1, 2)
    made = bits(materialize([spec], state_dict, [CPU()] * 2)["v"])
    assert np.array_equal(made, torch.cat([rows[4:], torch.zeros(3, 8)]).bfloat16().view(torch.uint16).numpy())


@pytest.mark.parametrize("name", FORMATS)
def test_padded_rows_of_blocks_are_zeros(tmp_path: Path, name: str) -> None:
    values = torch.from_numpy(random_values(5, 256))
    state_dict = open_state_dict([write(tmp_path, v=values)], str)
    source = WeightSource("v", (5, 256), axis=0, units=5, padding=2)
    specs = [WeightSpec(f"v{i}", FORMATS[name], (source,), i, 2) for i in range(2)]
    made = materialize(specs, state_dict, [CPU()] * 2)
    joined = np.concatenate([FORMATS[name].dequantize(np.asarray(made[spec.name])) for spec in specs])
    whole_spec = WeightSpec("v", FORMATS[name], (WeightSource("v", (5, 256)),))
    whole_blocks = materialize([whole_spec], state_dict, [CPU()])["v"]
    assert np.array_equal(joined[:5], FORMATS[name].dequantize(np.asarray(whole_blocks)))
    assert joined.shape == (8, 256) and not joined[5:].any()


def test_heads_that_cannot_be_spread_evenly() -> None:
    with pytest.raises(ValueError, match="3 units can't be split over 2 shards"):
        WeightSource("q", (12, 1), axis=0, units=3).cut(0, 2)


def test_names_are_adapted_and_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, **{"model.a": torch.ones(1), "vision.b": torch.ones(1)})
    state_dict = open_state_dict([path], {"model.a": "a", "vision.b": None}.__getitem__)
    assert list(state_dict) == ["a"]
    assert state_dict["a"].name == "model.a"


def test_an_unknown_name_is_unexpected(tmp_path: Path) -> None:
    path = write(tmp_path, odd=torch.ones(1))
    no_names: dict[str, str] = {}
    with pytest.raises(InputError, match=r"unexpected tensor 'odd' in .*: its architecture"):
        open_state_dict([path], no_names.__getitem__)


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    path = write(tmp_path, a=torch.ones(1), b=torch.ones(1))
    with pytest.raises(InputError, match="'a' and 'b'"):
        open_state_dict([path], lambda name: "same")
    with pytest.raises(InputError, match="'a' is twice"):
        open_state_dict([path, path], str)


def test_an_adapter_may_change_values(tmp_path: Path) -> None:
    """An adapter may change values: a GGUF's norms, for example, include their offset."""

    def adapt(tensors: dict[str, WeightData], config: Any) -> dict[str, WeightData]:
        data = tensors["norm"]
        shifted = np.asarray(data.data) - np.float32(1)
        return {"norm.weight": WeightData(shifted, data.name, data.dtype, data.shape)}

    state_dict = weights.open_state_dict([write(tmp_path, norm=torch.full((3,), 1.5))], adapt, None)
    made = materialize([whole("norm.weight", (3,))], state_dict, [CPU()])
    assert np.array_equal(as_numpy(made["norm.weight"]), np.full(3, 0.5, np.float32))


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({}, "missing tensor 'w'"),
        ({"w": torch.ones(3, 2)}, r"tensor 'w' has shape \[3, 2\], but config.json asks for \[2, 3\]"),
        ({"w": torch.ones(2, 3), "x": torch.ones(1), "y": torch.ones(1)}, "unexpected tensor 'x' and 1 more"),
        ({"w": torch.ones(2, 3, dtype=torch.int32)}, "tensor 'w' is int32, which can't become float32"),
    ],
)
def test_what_does_not_fit_the_graph_is_named(tmp_path: Path, tensors: dict[str, torch.Tensor], expected: str) -> None:
    state_dict = open_state_dict([write(tmp_path, **tensors)], str)
    with pytest.raises(InputError, match=expected):
        check_weights([whole("w", (2, 3))], state_dict)


def raw_file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"abc", "no header"),
        (b"<!DOCTYPE html><html>", "no header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "Git LFS pointer"),
        (raw_file(entry(), bytes(8))[:40], "cut short: it should have .* bytes and has 40"),
        (raw_file(entry(), bytes(5)), "cut short"),
        (raw_file(b"{not json"), "isn't JSON"),
        (raw_file([1, 2]), "JSON object"),
        (raw_file({"w": 3}), "wrong at 'w'"),
        (raw_file(entry(shape=[-2]), bytes(8)), "wrong at 'w'"),
        (raw_file(entry(shape=None), bytes(8)), "wrong at 'w'"),
        (raw_file(entry(data_offsets=[8, 0]), bytes(8)), "wrong at 'w'"),
        (raw_file(entry(data_offsets=[0]), bytes(8)), "wrong at 'w'"),
        (raw_file(entry(shape=[3]), bytes(8)), r"tensor 'w' of shape \[3\] has 8 bytes"),
        (raw_file(entry(shape=[2**62, 4]), bytes(8)), "has 8 bytes"),
        (raw_file(entry(dtype="F4"), bytes(8)), "tensor 'w' in .* has type F4"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=expected) as caught:
        open_state_dict([path], str)
    assert str(path) in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole_file = write(tmp_path, w=torch.randn(4, 4), v=torch.randn(3).bfloat16()).read_bytes()
    cut = tmp_path / "cut.safetensors"
    for num_bytes in range(len(whole_file)):
        cut.write_bytes(whole_file[:num_bytes])
        with pytest.raises(InputError, match=r"cut\.safetensors"):
            open_state_dict([cut], str)


def test_a_header_of_odd_length_still_gives_the_values(tmp_path: Path) -> None:
    """Such a file puts float32 values at odd addresses."""
    values = np.array([1.5, -2.0], np.float32)
    header = json.dumps(entry()).encode()
    for padding in range(4):
        path = tmp_path / f"{padding}.safetensors"
        path.write_bytes(raw_file(header + b" " * padding, values.tobytes()))
        made = make(path, whole("w", (2,)))
        assert np.array_equal(made, values)
        assert made.flags.aligned


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't read"):
        open_state_dict([tmp_path / "gone.safetensors"], str)


FLOAT8 = Float8Config((128, 96))


def write_float8(folder: Path, rows: int, columns: int) -> torch.Tensor:
    """A weight "w" with random scales; what it stands for, in bfloat16."""
    generator = torch.Generator().manual_seed(rows)
    values = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(FLOAT8.scale_shape((rows, columns)), generator=generator).to(torch.bfloat16)
    write(folder, w=values, w_scale_inv=scales)
    spread = scales.float().repeat_interleave(128, 0)[:rows].repeat_interleave(96, 1)[:, :columns]
    return (values.float() * spread).to(torch.bfloat16)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 96), (130, 200), (700, 97)])
@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_float8_is_dequantized_block_by_block(tmp_path: Path, rows: int, columns: int, dtype: DType) -> None:
    expected = write_float8(tmp_path, rows, columns)
    spec = dataclasses.replace(whole("w", (rows, columns), dtype), quant_config=FLOAT8)
    made = make(tmp_path / "model.safetensors", spec)
    if dtype == DType.float32:
        assert np.array_equal(made, expected.float().numpy())
    else:
        assert np.array_equal(bits(made), expected.view(torch.uint16).numpy())


def test_every_float8_pattern_is_the_number_it_stands_for(tmp_path: Path) -> None:
    values = torch.from_numpy(np.arange(256, dtype=np.uint8).reshape(16, 16)).view(torch.float8_e4m3fn)
    write(tmp_path, w=values, w_scale_inv=torch.ones(1, 1))
    made = make(tmp_path / "model.safetensors", dataclasses.replace(whole("w", (16, 16)), quant_config=FLOAT8))
    assert np.array_equal(made, values.float().numpy(), equal_nan=True)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_shards_of_a_float8_weight_may_cut_its_blocks(tmp_path: Path, axis: int) -> None:
    expected = write_float8(tmp_path, 200, 200).float().numpy()
    for shard, part in enumerate(np.split(expected, 4, axis)):
        sources = (WeightSource("w", (200, 200), axis, 200),)
        spec = WeightSpec("s", DType.float32, sources, shard, 4, FLOAT8)
        assert np.array_equal(make(tmp_path / "model.safetensors", spec), part)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({}, "missing tensor 'w_scale_inv'"),
        ({"w_scale_inv": torch.ones(2, 1)}, r"'w_scale_inv' has shape \[2, 1\], but config.json asks for \[2, 3\]"),
        ({"w_scale_inv": torch.ones(2, 3, dtype=torch.int32)}, "'w_scale_inv' is int32"),
    ],
)
def test_scales_that_do_not_fit_are_named(tmp_path: Path, scales: dict[str, torch.Tensor], message: str) -> None:
    path = write(tmp_path, w=torch.zeros(200, 200).to(torch.float8_e4m3fn), **scales)
    with pytest.raises(InputError, match=message):
        make(path, dataclasses.replace(whole("w", (200, 200)), quant_config=FLOAT8))


def test_float8_without_a_configuration_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, w=torch.zeros(2, 2).to(torch.float8_e4m3fn))
    with pytest.raises(InputError, match="'w' is float8_e4m3fn, which can't become float32"):
        make(path, whole("w", (2, 2)))


def test_dequantizing_takes_little_more_memory_than_its_result(tmp_path: Path) -> None:
    """64 MiB in float8 become 128 in bfloat16; in float32 they would be 256 beside these."""
    rows, columns = 8192, 8192
    values = torch.zeros(rows, columns, dtype=torch.uint8).view(torch.float8_e4m3fn)
    path = write(tmp_path, w=values, w_scale_inv=torch.ones(FLOAT8.scale_shape((rows, columns))))
    spec = dataclasses.replace(whole("w", (rows, columns), DType.bfloat16), quant_config=FLOAT8)
    state_dict = open_state_dict([path], str)
    tracemalloc.start()
    made = materialize([spec], state_dict, [CPU()])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - rows * columns * 2 <= 100 * 2**20, f"{peak / 2**20:.0f} MiB"
    assert made


@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_a_weight_is_aligned_and_copied_only_if_it_is_not_so_in_the_file(tmp_path: Path, dtype: DType) -> None:
    """The kernels' vector loads crash otherwise; a table whose rows are looked up stays wherever it is."""
    values = torch.arange(8.0).to({DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}[dtype])
    places = set()
    for offset in range(64 // values.itemsize):
        path = write(tmp_path, a=torch.zeros(offset, dtype=values.dtype), w=values)
        state_dict = open_state_dict([path], str)
        stored = np.asarray(state_dict["w"].data)
        place = stored.ctypes.data % 64
        spec = whole("w", (8,), dtype)
        used = as_numpy(materialize([spec], state_dict, [CPU()])["w"])
        assert np.array_equal(used, stored)
        assert used.ctypes.data % 64 == 0
        assert np.shares_memory(used, stored) == (place == 0)
        table = as_numpy(materialize([dataclasses.replace(spec, is_on_host=True)], state_dict, [CPU()])["w"])
        assert np.shares_memory(table, stored) == (place % stored.itemsize == 0)
        places.add(place)
    assert 0 in places and len(places) > 8


def as_numpy(value: Any) -> np.ndarray[Any, Any]:
    """The same memory; bfloat16 as its bits."""
    return value.view(DType.uint16, list(value.shape)).to_numpy() if isinstance(value, Buffer) else value


BLOCKS = FORMATS["q8_0"]


def block_data(name: str, values: npt.NDArray[np.float32], block_format: BlockFormat = BLOCKS) -> WeightData:
    blocks = gguf.quants.quantize(values, block_format.ggml_type)
    return BlockData(blocks, name, DType.uint8, Shape(values.shape), block_format=block_format)


def random_values(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def test_blocks_of_one_tensor_are_used_in_place() -> None:
    data = block_data("w", random_values(6, 96))
    made = materialize([WeightSpec("w", BLOCKS, (WeightSource("w", (6, 96)),))], {"w": data}, [CPU()])["w"]
    assert isinstance(made, np.ndarray)
    assert made.shape == (6, 102)
    assert np.shares_memory(made, np.asarray(data.data))


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_are_cut_by_rows_and_by_whole_blocks(axis: int) -> None:
    values = random_values(8, 128)
    state_dict = {"w": block_data("w", values)}
    source = WeightSource("w", (8, 128), axis=axis, units=4)
    specs = [WeightSpec(f"w{i}", BLOCKS, (source,), i, 2) for i in range(2)]
    check_weights(specs, state_dict)
    made = materialize(specs, state_dict, [CPU()] * 2)
    parts = [BLOCKS.dequantize(np.asarray(made[spec.name])) for spec in specs]
    assert np.array_equal(np.concatenate(parts, axis), BLOCKS.dequantize(np.asarray(state_dict["w"].data)))


def test_blocks_that_a_cut_would_divide_are_dequantized() -> None:
    """48 of 96 columns are one block and a half."""
    state_dict = {"w": block_data("w", random_values(8, 96))}
    source = WeightSource("w", (8, 96), axis=1, units=2)
    specs = [WeightSpec(f"w{i}", DType.float32, (source,), i, 2) for i in range(2)]
    check_weights(specs, state_dict)
    made = materialize(specs, state_dict, [CPU()] * 2)
    joined = np.concatenate([np.asarray(made[spec.name]) for spec in specs], 1)
    assert np.array_equal(joined, BLOCKS.dequantize(np.asarray(state_dict["w"].data)))


def test_blocks_are_joined() -> None:
    values = {name: random_values(rows, 64) for name, rows in (("q", 8), ("k", 2))}
    state_dict = {name: block_data(name, value) for name, value in values.items()}
    spec = WeightSpec("qk", BLOCKS, tuple(WeightSource(name, value.shape) for name, value in values.items()))
    made = materialize([spec], state_dict, [CPU()])["qk"]
    assert np.array_equal(made, np.concatenate([np.asarray(data.data) for data in state_dict.values()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_floats_are_quantized_as_the_gguf_package_does(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    values = torch.from_numpy(random_values(70, 96)).to(dtype)
    spec = WeightSpec("w", FORMATS[name], (WeightSource("w", (70, 96)),))
    made = make(write(tmp_path, w=values), spec)
    assert np.array_equal(made, gguf.quants.quantize(values.float().numpy(), FORMATS[name].ggml_type))


@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_blocks_are_dequantized_for_a_float_encoding(dtype: DType) -> None:
    data = block_data("w", random_values(5, 64))
    spec = whole("w", (5, 64), dtype)
    check_weights([spec], {"w": data})
    made = materialize([spec], {"w": data}, [CPU()])["w"]
    exact = torch.from_numpy(BLOCKS.dequantize(np.asarray(data.data)))
    if dtype == DType.float32:
        assert np.array_equal(made, exact.numpy())
    else:
        assert np.array_equal(bits(made), exact.bfloat16().view(torch.uint16).numpy())


def test_blocks_do_not_become_other_blocks() -> None:
    """They would be quantized twice."""
    spec = WeightSpec("w", FORMATS["q4_0"], (WeightSource("w", (5, 64)),))
    with pytest.raises(InputError, match=r"^tensor 'w' is q8_0, which can't become q4_0$"):
        check_weights([spec], {"w": block_data("w", random_values(5, 64))})
