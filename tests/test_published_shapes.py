"""Every published Gemma 3 becomes a configuration and a traced graph, without weights, on CPU and GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData
from transformers import AutoConfig

from architectures.gemma3 import Gemma3Config
from architectures.gemma3.graph import build_graph
from architectures.gemma3.weight_adapters import adapt_name
from pipelines import PipelineConfig
from pipelines.pipeline_model import ReturnLogits
from pipelines.weights import check_weights

CONFIGS = sorted(path for path in (Path(__file__).parent / "configs").iterdir() if "gemma-3" in path.name)
RUNS = [
    ("cpu", "float32"),
    ("gpu", "float32"),
    ("gpu", "bfloat16"),
    ("gpu:0,1", "bfloat16"),
    ("gpu:0,1,2,3", "bfloat16"),
]


def state_dict(tensors: Path) -> dict[str, WeightData]:
    """A checkpoint's names, types and shapes, without data."""
    adapted = {}
    for name, (dtype, shape) in json.loads(tensors.read_text()).items():
        assert dtype == "BF16"
        if (graph_name := adapt_name(name)) is not None:
            adapted[graph_name] = WeightData(None, name, DType.bfloat16, Shape(shape))  # type: ignore[arg-type]
    return adapted


def configured(folder: Path, devices: str, encoding: str, weights: dict[str, WeightData]) -> Gemma3Config:
    huggingface_config: Any = AutoConfig.from_pretrained(folder)
    run = PipelineConfig(model=str(folder), devices=devices, quantization_encoding=encoding)
    config = Gemma3Config.initialize_from_config(run, huggingface_config)
    config.finalize(huggingface_config, weights, ReturnLogits.VARIABLE)
    return config


@pytest.mark.parametrize(("devices", "encoding"), RUNS)
@pytest.mark.parametrize("folder", CONFIGS, ids=lambda folder: folder.name)
def test_a_published_config_traces_and_finds_all_its_weights(folder: Path, devices: str, encoding: str) -> None:
    weights = state_dict(folder / "tensors.json")
    config = configured(folder, devices, encoding, weights)
    traced = build_graph(config)
    check_weights(traced.weights, weights)
    assert len(config.get_kv_params().devices) == len(config.devices)
    assert config.get_num_layers(AutoConfig.from_pretrained(folder)) == len(config.layer_types)


@pytest.mark.parametrize("folder", [f for f in CONFIGS if (f / "tensors_transformers5.json").exists()])
def test_names_that_transformers_5_saves_are_mapped_to_the_same_weights(folder: Path) -> None:
    published, saved = (state_dict(folder / name) for name in ("tensors.json", "tensors_transformers5.json"))
    saved.pop("lm_head.weight", None)  # in memory a tied head has a name of its own
    assert {name: tuple(w.shape) for name, w in saved.items()} == {n: tuple(w.shape) for n, w in published.items()}


def test_the_shards_of_a_weight_are_its_parts() -> None:
    """Four devices: every projection is cut by heads, a KV head that is alone is repeated."""
    folder = next(f for f in CONFIGS if f.name == "google__gemma-3-1b-it")
    config = configured(folder, "gpu:0,1,2,3", "bfloat16", state_dict(folder / "tensors.json"))
    shapes = {spec.name: spec.shape for spec in build_graph(config).weights}
    assert shapes["layers.0.self_attn.qkv_proj.weight.shard3"] == (3 * 256, 1152)  # one query head, the K, the V head
    assert shapes["layers.0.self_attn.o_proj.weight.shard0"] == (1152, 256)
    assert shapes["layers.0.mlp.gate_up_proj.weight.shard1"] == (2 * 6912 // 4, 1152)
    assert shapes["embed_tokens.weight"] == (262144, 1152)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention true"),
        ({"hidden_activation": "gelu_new"}, "hidden_activation 'gelu_new'"),
        ({"sliding_window": 64}, "sliding_window 64"),
        ({"layer_types": ["chunked_attention"] * 26}, "chunked_attention"),
    ],
)
def test_what_the_graph_cannot_honour_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    folder = next(f for f in CONFIGS if f.name == "google__gemma-3-1b-it")
    huggingface_config = AutoConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(huggingface_config, name, value)
    run = PipelineConfig(model=str(folder), quantization_encoding="float32")
    with pytest.raises(ValueError, match=message):
        Gemma3Config.initialize_from_config(run, huggingface_config)


def test_scaled_rope_of_an_unknown_kind_is_refused_by_name() -> None:
    folder = next(f for f in CONFIGS if f.name == "google__gemma-3-4b-it")
    huggingface_config = AutoConfig.from_pretrained(folder)
    huggingface_config.text_config.rope_parameters["full_attention"]["rope_type"] = "dynamic"
    run = PipelineConfig(model=str(folder), quantization_encoding="float32")
    with pytest.raises(ValueError, match=r"rope_parameters\.full_attention\.rope_type 'dynamic'"):
        Gemma3Config.initialize_from_config(run, huggingface_config)


def test_a_config_that_is_not_finalized_builds_no_graph() -> None:
    folder = CONFIGS[0]
    run = PipelineConfig(model=str(folder), quantization_encoding="float32")
    config = Gemma3Config.initialize_from_config(run, AutoConfig.from_pretrained(folder))
    with pytest.raises(ValueError, match="finalize"):
        build_graph(config)


@pytest.mark.parametrize(("devices", "dtype"), [("cpu", DType.float32), ("gpu", DType.bfloat16)])
def test_the_encoding_that_is_not_asked_for_is_the_devices_own(devices: str, dtype: DType) -> None:
    config = configured(CONFIGS[0], devices, "auto", {})
    assert config.dtype == dtype


def test_an_encoding_that_the_device_cannot_run_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="quantization_encoding 'q4_0' does not run on gpu"):
        configured(CONFIGS[0], "gpu", "q4_0", {})
