"""Tensors of GGUF files become the weights that the same model in safetensors files gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData
from published import SUPPORTED, architecture_of, tensors_of
from transformers import AutoConfig

from architectures.decoder.gguf_weight_adapters import as_float32, minus_one, unpermuted
from pipelines.errors import InputError
from pipelines.loading.blocks import FORMATS, BlockData
from pipelines.loading.checkpoint import Checkpoint, resolve_config
from pipelines.loading.gguf.file import open_gguf_state_dict
from pipelines.loading.weights import open_state_dict
from pipelines.registry import Registry

MODELS = ("gemma3", "gemma4", "gemma4_dense", "llama3", "qwen3", "qwen3_bias", "qwen3_moe")
PUBLISHED = {name: folder for name, folder in SUPPORTED.items() if not name.endswith("FP8")}
IMAGES = ("vision", "audio", "projector")


def opened(checkpoint: Checkpoint) -> dict[str, WeightData]:
    adapters = Registry.load().find(checkpoint.architectures).weight_adapters
    adapt, config = adapters[checkpoint.weights_format], checkpoint.huggingface_config
    if checkpoint.gguf is not None:
        return open_gguf_state_dict(checkpoint.gguf, adapt, config)
    return open_state_dict(checkpoint.download_weights(), adapt, config)


@pytest.mark.parametrize("name", MODELS)
def test_values_are_those_of_the_checkpoint(checkpoints: Mapping[str, Path], name: str, tmp_path: Path) -> None:
    expected = opened(resolve_config(str(checkpoints[name])))
    found = opened(resolve_config(str(gguf_models.write_checkpoint(checkpoints[name], tmp_path / "x.gguf"))))
    assert found.keys() == expected.keys()
    for weight, data in expected.items():
        assert tuple(found[weight].shape) == tuple(data.shape), weight
        # Norms that were stored plus one are rounded; what the graph makes of them, one plus weight, is not.
        tolerance = 1e-7 if name == "gemma3" and weight.endswith("norm.weight") else 0
        np.testing.assert_allclose(as_float32(found[weight]), as_float32(data), rtol=0, atol=tolerance, err_msg=weight)


BF16, Q8_0 = GGMLQuantizationType.BF16, GGMLQuantizationType.Q8_0
STORED = [(name, BF16) for name in MODELS] + [(name, Q8_0) for name in ("gemma3", "llama3", "qwen3")]
"""The others have rows that are no whole blocks of 32."""


@pytest.mark.parametrize(("name", "stored_as"), STORED)
def test_stored_types_are_kept(
    checkpoints: Mapping[str, Path], name: str, stored_as: GGMLQuantizationType, tmp_path: Path
) -> None:
    expected = opened(resolve_config(str(checkpoints[name])))
    path = gguf_models.write_checkpoint(checkpoints[name], tmp_path / "x.gguf", stored_as)
    checkpoint = resolve_config(str(path))
    found = opened(checkpoint)
    assert checkpoint.dtype == ("gguf" if stored_as == Q8_0 else "bfloat16")
    for weight, data in expected.items():
        if len(data.shape) == 2 and not weight.endswith("mlp.gate.weight"):
            rounded = dequantize(quantize(as_float32(data), stored_as), stored_as)
            np.testing.assert_array_equal(as_float32(found[weight]), rounded, err_msg=weight)
            assert isinstance(found[weight], BlockData) == (stored_as == Q8_0)


def test_a_matrix_is_a_view_of_the_file(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    path = gguf_models.write_checkpoint(checkpoints["qwen3_moe"], tmp_path / "x.gguf")
    checkpoint = resolve_config(str(path))
    assert checkpoint.gguf is not None
    mapped = checkpoint.gguf.headers[0].data
    for weight in ("layers.0.self_attn.q_proj.weight", "layers.0.mlp.experts.5.down_proj.weight"):
        assert np.shares_memory(np.asarray(opened(checkpoint)[weight].data), mapped)


def file_shapes(folder: Path) -> dict[str, WeightData]:
    """Tensors of a published model in a GGUF file, without data: views of one number have any shape."""
    config = gguf_models.text_config(folder)
    tensors = {
        name: np.broadcast_to(np.float32(0), shape)
        for name, (_, shape) in tensors_of(folder).items()
        if not any(part in name for part in IMAGES)
    }
    experts = {name: array for name, array in tensors.items() if ".experts." in name}
    others = {name: array for name, array in tensors.items() if name not in experts}
    names = gguf_models.file_tensors({name: np.zeros(64, np.float32) for name in others}, config)
    found = dict(zip((name for name in names if name != gguf_models.ROPE_FREQS), others.values(), strict=True))
    for name, array in experts.items():
        if ".experts.0." in name:
            stacked = name.replace("experts.0.", "experts.")
            (file_name,) = gguf_models.file_tensors({stacked: np.zeros(64, np.float32)}, config)
            found[file_name] = np.broadcast_to(np.float32(0), (config_experts(config), *array.shape))
    return {
        name: WeightData(None, name, DType.float32, Shape(array.shape))  # type: ignore[arg-type]
        for name, array in found.items()
    }


def config_experts(config: Mapping[str, Any]) -> int:
    return int(config.get("num_experts") or config["num_local_experts"])


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_finds_all_its_weights(name: str) -> None:
    folder = PUBLISHED[name]
    published = AutoConfig.from_pretrained(folder)
    tensors = file_shapes(folder)
    architecture = Registry.load().find([architecture_of(folder).name.replace("ConditionalGeneration", "CausalLM")])
    found = architecture.weight_adapters["gguf"](tensors, published)
    plain = {
        tensor: WeightData(None, tensor, DType.float32, Shape(shape))  # type: ignore[arg-type]
        for tensor, (_, shape) in tensors_of(folder).items()
        if not any(part in tensor for part in IMAGES)
    }
    expected = architecture.weight_adapters["safetensors"](plain, published)
    assert found.keys() == expected.keys()
    assert {n: tuple(d.shape) for n, d in found.items()} == {n: tuple(d.shape) for n, d in expected.items()}


def test_rows_of_queries_and_keys() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(48, 32)).astype(np.float32)
    data = WeightData(gguf_models.permuted(rows, 6), "q", DType.float32, Shape(rows.shape))
    np.testing.assert_array_equal(np.asarray(unpermuted(data, 6).data), rows)
    bias = WeightData(gguf_models.permuted(rows[:, 0], 6), "q", DType.float32, Shape([48]))
    np.testing.assert_array_equal(np.asarray(unpermuted(bias, 6).data), rows[:, 0])


@pytest.mark.parametrize("name", FORMATS)
def test_rows_in_blocks_stay_whole(name: str) -> None:
    block_format = FORMATS[name]
    raw = np.random.default_rng(0).integers(0, 60, (16, block_format.row_bytes(512)), np.uint8)
    data = BlockData(gguf_models.permuted(raw, 2), "q", DType.uint8, Shape([16, 512]), block_format=block_format)
    found = unpermuted(data, 2)
    assert isinstance(found, BlockData) and found.block_format == block_format
    np.testing.assert_array_equal(np.asarray(found.data), raw)
    np.testing.assert_array_equal(as_float32(found), block_format.dequantize(raw))


def test_rows_that_are_no_heads_are_left_for_the_check_of_shapes() -> None:
    data = WeightData(np.zeros((7, 4), np.float32), "q", DType.float32, Shape([7, 4]))
    assert unpermuted(data, 2) is data


def test_norms_of_gemma_3_are_exact_where_the_graph_uses_them() -> None:
    weights = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    stored = weights + np.float32(1)
    found = minus_one(WeightData(stored, "norm", DType.float32, Shape([5000])))
    np.testing.assert_array_equal(np.asarray(found.data) + np.float32(1), stored)
    halves = WeightData(np.array([1.5, 0.25], np.float16), "norm", DType.float16, Shape([2]))
    assert np.asarray(minus_one(halves).data).tolist() == [0.5, -0.75]


def test_the_factors_of_rope_are_dropped(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    path = gguf_models.write_checkpoint(checkpoints["llama3"], tmp_path / "x.gguf")
    checkpoint = resolve_config(str(path))
    assert checkpoint.gguf is not None and "rope_freqs.weight" in checkpoint.gguf.tensors
    assert not any("rope" in name for name in opened(checkpoint))


@pytest.mark.parametrize("unknown", ["blk.0.attn_qkv.weight", "altup_proj.weight", "blk.0.attn_q.scale", "blk.x.y"])
def test_tensors_of_other_architectures(checkpoints: Mapping[str, Path], unknown: str, tmp_path: Path) -> None:
    path = gguf_models.write_checkpoint(checkpoints["qwen3"], tmp_path / "x.gguf")
    checkpoint = resolve_config(str(path))
    assert checkpoint.gguf is not None
    adapt = Registry.load().find(checkpoint.architectures).weight_adapters["gguf"]

    def adapt_with_unknown(tensors: Any, config: Any) -> Any:
        data = WeightData(np.zeros(4, np.float32), unknown, DType.float32, Shape([4]))
        return adapt(tensors | {unknown: data}, config)

    with pytest.raises(InputError, match=f"unexpected tensor '{unknown}' in {path}"):
        open_gguf_state_dict(checkpoint.gguf, adapt_with_unknown, checkpoint.huggingface_config)
