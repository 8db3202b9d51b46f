"""Every published model becomes a configuration and a traced graph, without weights, on CPU and GPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from max.dtype import DType
from max.graph import DeviceRef
from published import FOLDERS, REFUSED, SUPPORTED, architecture_of, configured, encodings_of, state_dict_of
from transformers import AutoConfig

from architectures.gemma3.graph import build_graph
from architectures.gemma3_multimodal.vision_config import VisionConfig
from architectures.gemma3_multimodal.vision_graph import build_vision_graph
from pipelines import PipelineConfig
from pipelines.loading.weight_spec import TracedGraph, WeightSource, WeightSpec
from pipelines.loading.weights import check_weights
from pipelines.registry import Registry

pytestmark = pytest.mark.slow  # together they take seconds

SMALLEST = (
    "google__gemma-3-270m-it",
    "google__gemma-4-E2B-it",
    "Qwen__Qwen3-0.6B",
    "meta-llama__Llama-3.2-1B-Instruct",
)
SEVERAL = ("gpu:0,1", "gpu:0,1,2,3", "gpu:0,1,2,3,4,5,6,7")
UNSPLITTABLE = dict.fromkeys(
    [(f"google__gemma-3-{size}-it", SEVERAL[-1]) for size in ("270m", "1b")], "num_attention_heads 4"
)
"""Models that can't be split over so many devices, and the count that can't."""
RUNS = [
    pytest.param(
        folder,
        devices,
        encoding,
        marks=() if folder.name in SMALLEST and devices == "cpu" else pytest.mark.slow,
    )
    for folder in SUPPORTED.values()
    for devices in ("cpu", "gpu", *SEVERAL)
    for encoding in encodings_of(folder, devices[:3])
    if devices in ("cpu", "gpu") or encoding == ("float8_e4m3fn" if folder.name.endswith("FP8") else "bfloat16")
    if (folder.name, devices) not in UNSPLITTABLE
]


@pytest.mark.parametrize(("folder", "devices", "encoding"), RUNS, ids=lambda value: getattr(value, "name", value))
def test_a_published_config_traces_and_finds_all_its_weights(folder: Path, devices: str, encoding: str) -> None:
    weights = state_dict_of(folder)
    config = configured(folder, devices, encoding, weights)
    graphs = graphs_of(folder, config)
    check_weights([spec for traced in graphs for spec in traced.weights], weights)
    for traced in graphs:
        assert_the_loader_meets_the_graph(traced, config.devices)
    assert len(config.get_kv_params().devices) == len(config.devices)
    assert config.get_num_layers(AutoConfig.from_pretrained(folder)) == len(config.layer_types)


def assert_the_loader_meets_the_graph(traced: TracedGraph, devices: Sequence[DeviceRef]) -> None:
    """Type, shape and device of each weight are those that MAX's `init` will ask for.

    MAX expects a weight where the graph's constant lies, and compares only whether that is the host
    (`InferenceSession.compile` and `init_all` in max/engine/api.py).
    """
    declared = {name: weight.value for name, weight in traced.graph._weights.items()}
    assert declared.keys() == {spec.name for spec in traced.weights}
    assert_shards_make_up_the_tensors(traced.weights)
    placed = [SimpleNamespace(is_host=device.is_cpu()) for device in devices]
    for spec in traced.weights:
        value = declared[spec.name]
        assert (value.dtype, [int(dim) for dim in value.shape]) == (spec.dtype, list(spec.shape)), spec.name
        assert value.device == spec.device_ref(devices), spec.name
        assert value.device.is_cpu() == spec.is_placed_on_host(placed), spec.name  # type: ignore[arg-type]


def assert_shards_make_up_the_tensors(specs: Sequence[WeightSpec]) -> None:
    """Each device's part of a weight is as long as its share; the parts of all devices are the whole tensor."""
    parts: dict[WeightSource, set[tuple[int, int]]] = {}
    for spec in specs:
        for source in spec.sources:
            if source.axis is not None:
                cut = source.cut(spec.shard, spec.num_shards)
                length = source.shard_size(spec.num_shards)
                assert cut.stop - cut.start == length or (source.padding and cut.stop == source.shape[source.axis])
                parts.setdefault(source, set()).add((cut.start, cut.stop))
    (num_shards,) = {spec.num_shards for spec in specs if not spec.is_on_host}  # 1 for the vision tower
    for source, ranges in parts.items():
        ends = [0, *(stop for _, stop in sorted(ranges))]
        assert source.axis is not None and [start for start, _ in sorted(ranges)] == ends[:-1]
        assert ends[-1] == source.shape[source.axis], source.name
        assert len(ranges) in (num_shards, source.units), source.name


def graphs_of(folder: Path, config: Any) -> list[TracedGraph]:
    """All graphs of a model."""
    build = architecture_of(folder).pipeline_model.build_graph
    if architecture_of(folder).image_processor is None:
        return [build(config)]
    return [build(config), build(config, bidirectional=True), build_vision_graph(vision_config(folder, config))]


def vision_config(folder: Path, config: Any) -> VisionConfig:
    huggingface_config = AutoConfig.from_pretrained(folder)
    return VisionConfig.from_huggingface(huggingface_config, config.dtype, config.encoding, config.devices)


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["cpu", "gpu", "gpu:0,1"])
def test_the_graph_of_steps_of_images_has_weights_of_the_one_of_text(devices: str) -> None:
    folder = FOLDERS["google__gemma-3-4b-it"]
    config = configured(folder, devices, "bfloat16", state_dict_of(folder))
    of_text, of_images = (build_graph(config, bidirectional=value) for value in (False, True))
    assert {spec.name for spec in of_images.weights} <= {spec.name for spec in of_text.weights}
    (features,) = build_vision_graph(vision_config(folder, config)).graph.output_types
    embeddings = of_images.graph.inputs[-1].type
    assert (features.dtype, features.device) == (embeddings.dtype, embeddings.device)
    assert features.shape[1] == embeddings.shape[1], "the tower's output is the image graph's input, where it is"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_published_model_that_is_not_built_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="enable_moe_block true"):
        configured(FOLDERS[name], "cpu", "auto", {})


def test_the_examples_are_the_published_models_that_run() -> None:
    examples = [repo for record in Registry.load().architectures.values() for repo in record.example_repo_ids]
    assert sorted(repo.replace("/", "__") for repo in examples) == sorted(SUPPORTED)


@pytest.mark.parametrize("name", [n for n, f in SUPPORTED.items() if (f / "tensors_transformers5.json").exists()])
def test_names_that_transformers_5_saves_are_mapped_to_the_same_weights(name: str) -> None:
    shapes = []
    for file in ("tensors.json", "tensors_transformers5.json"):
        weights = state_dict_of(FOLDERS[name], file)
        configured(FOLDERS[name], "cpu", "auto", weights)
        weights.pop("lm_head.weight", None)  # in memory a tied head has a name of its own
        shapes.append({name: tuple(w.shape) for name, w in weights.items()})
    assert shapes[0] == shapes[1]


def shapes_on_four_devices(name: str, encoding: str) -> dict[str, tuple[int, ...]]:
    folder = FOLDERS[name]
    config = configured(folder, "gpu:0,1,2,3", encoding, state_dict_of(folder))
    return {spec.name: spec.shape for spec in architecture_of(folder).pipeline_model.build_graph(config).weights}


def test_the_shards_of_a_weight_are_its_parts() -> None:
    """Four devices: every projection is cut by heads, a KV head that is alone is repeated."""
    shapes = shapes_on_four_devices("google__gemma-3-1b-it", "bfloat16")
    assert shapes["layers.0.self_attn.qkv_proj.weight.shard3"] == (3 * 256, 1152)  # one query head, the K, the V head
    assert shapes["layers.0.self_attn.o_proj.weight.shard0"] == (1152, 256)
    assert shapes["layers.0.mlp.gate_up_proj.weight.shard1"] == (2 * 6912 // 4, 1152)
    assert shapes["embed_tokens.weight.shard2"] == (262144 // 4, 1152)
    assert shapes["norm.weight.shard1"] == (1152,)


@pytest.mark.parametrize(("folder_name", "devices"), UNSPLITTABLE)
def test_a_published_model_that_cannot_be_split_is_refused_by_name(folder_name: str, devices: str) -> None:
    message = rf"^{UNSPLITTABLE[folder_name, devices]} can't be split over 8 devices: .*\(--devices\).*: 1, 2, 4$"
    with pytest.raises(ValueError, match=message):
        configured(FOLDERS[folder_name], devices, "auto", {})


@pytest.mark.parametrize(
    ("name", "changes", "num_devices", "message"),
    [
        ("google__gemma-3-1b-it", {}, 3, "num_attention_heads 4 can't be split over 3 devices: .*: 1, 2$"),
        ("Qwen__Qwen3-0.6B", {"num_key_value_heads": 6, "num_attention_heads": 24}, 4, "num_key_value_heads 6 can't"),
        ("Qwen__Qwen3-0.6B", {"intermediate_size": 3002}, 4, "intermediate_size 3002 can't be .*: 1, 2$"),
        ("Qwen__Qwen3-30B-A3B", {"moe_intermediate_size": 770}, 4, "moe_intermediate_size 770 can't"),
    ],
)
def test_a_count_that_cannot_be_split_is_refused_by_name(
    name: str, changes: dict[str, Any], num_devices: int, message: str
) -> None:
    huggingface_config = AutoConfig.from_pretrained(FOLDERS[name])
    for field, value in changes.items():
        setattr(huggingface_config.get_text_config(), field, value)
    run = PipelineConfig(model=str(FOLDERS[name]), devices="gpu:" + ",".join(map(str, range(num_devices))))
    with pytest.raises(ValueError, match=message):
        architecture_of(FOLDERS[name]).config.initialize_from_config(run, huggingface_config)


def test_heads_of_full_layers_alone_that_cannot_be_split_are_refused_by_name() -> None:
    config = configured(FOLDERS["google__gemma-4-31B-it"], "gpu:0,1,2,3,4,5,6,7", "auto", {})
    config.refuse_unsupported()
    with pytest.raises(ValueError, match=r"num_global_key_value_heads 6 can't be split over 8 devices: .*: 1, 2$"):
        dataclasses.replace(config, num_global_key_value_heads=6).refuse_unsupported()


def test_a_width_that_no_layer_has_may_be_odd() -> None:
    """All layers of Qwen 3's 30B-A3B are of experts: `intermediate_size` is nobody's."""
    folder = FOLDERS["Qwen__Qwen3-30B-A3B"]
    huggingface_config = AutoConfig.from_pretrained(folder)
    huggingface_config.intermediate_size = 6001
    run = PipelineConfig(model=str(folder), devices="gpu:0,1")
    architecture_of(folder).config.initialize_from_config(run, huggingface_config)


@pytest.mark.slow
def test_the_scales_of_a_float8_weight_are_cut_as_it_is() -> None:
    shapes = shapes_on_four_devices("Qwen__Qwen3-8B-FP8", "float8_e4m3fn")
    assert shapes["layers.0.self_attn.qkv_proj.weight.shard3"] == (8 * 128 + 2 * 2 * 128, 4096)
    assert shapes["layers.0.self_attn.qkv_proj.weight_scale_inv.shard3"] == (8 + 2 * 2, 32)
    assert shapes["layers.0.mlp.down_proj.weight_scale_inv.shard0"] == (32, 96 // 4)


@pytest.mark.slow
def test_experts_are_stacked_and_each_is_cut() -> None:
    shapes = shapes_on_four_devices("Qwen__Qwen3-30B-A3B", "bfloat16")
    assert shapes["layers.0.mlp.experts.gate_up_proj.shard0"] == (128 * 2 * 768 // 4, 2048)
    assert shapes["layers.0.mlp.experts.down_proj.shard0"] == (128 * 2048, 768 // 4)
    assert shapes["layers.0.mlp.gate.weight.shard3"] == (128, 2048)


GEMMA_3 = "google__gemma-3-1b-it"
GEMMA_4 = "google__gemma-4-E2B-it"
LLAMA = "meta-llama__Llama-3.2-1B-Instruct"
FLOAT8 = "Qwen__Qwen3-8B-FP8"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (GEMMA_3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        (GEMMA_3, {"use_bidirectional_attention": True}, "use_bidirectional_attention true"),
        (GEMMA_3, {"hidden_activation": "gelu_new"}, "hidden_activation 'gelu_new'"),
        (GEMMA_3, {"head_dim": 200}, "head_dim 200"),
        (GEMMA_3, {"head_dim": 1024}, "head_dim 1024"),
        (GEMMA_3, {"layer_types": ["chunked_attention"] * 26}, "chunked_attention"),
        (GEMMA_4, {"use_bidirectional_attention": "all"}, "use_bidirectional_attention 'all'"),
        (GEMMA_4, {"num_kv_shared_layers": 34}, "num_kv_shared_layers 34"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias true"),
        (LLAMA, {"quantization_config": {"quant_method": "fp8"}}, "quantization_config is not supported for Llama3"),
        (LLAMA, {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "rope_parameters has no 'factor'"),
        (LLAMA, {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0}}, "rope_type 'longrope'"),
        (LLAMA, {"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        (FLOAT8, {"quantization_config": {"quant_method": "awq"}}, "quant_method 'awq'"),
        (FLOAT8, {"quantization_config": {"quant_method": "compressed-tensors"}}, "quant_method 'compressed-tensors'"),
        (FLOAT8, {"quantization_config": {"quant_method": "fp8"}}, "weight_block_size None"),
        (
            FLOAT8,
            {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}},
            "activation_scheme 'static'",
        ),
    ],
)
def test_what_the_graph_cannot_honour_is_refused_by_name(name: str, changes: dict[str, Any], message: str) -> None:
    huggingface_config = AutoConfig.from_pretrained(FOLDERS[name])
    for field, value in changes.items():
        setattr(huggingface_config.get_text_config(), field, value)
    run = PipelineConfig(model=str(FOLDERS[name]))
    with pytest.raises(ValueError, match=message):
        architecture_of(FOLDERS[name]).config.initialize_from_config(run, huggingface_config)


def test_scaled_rope_of_an_unknown_kind_is_refused_by_name() -> None:
    folder = FOLDERS["google__gemma-3-4b-it"]
    huggingface_config = AutoConfig.from_pretrained(folder)
    huggingface_config.text_config.rope_parameters["full_attention"]["rope_type"] = "dynamic"
    with pytest.raises(ValueError, match=r"rope_parameters\.full_attention\.rope_type 'dynamic'"):
        architecture_of(folder).config.initialize_from_config(PipelineConfig(model=str(folder)), huggingface_config)


def test_a_config_that_is_not_finalized_builds_no_graph() -> None:
    folder = FOLDERS[GEMMA_3]
    architecture, run = architecture_of(folder), PipelineConfig(model=str(folder))
    config = architecture.config.initialize_from_config(run, AutoConfig.from_pretrained(folder))
    with pytest.raises(ValueError, match="finalize"):
        architecture.pipeline_model.build_graph(config)


@pytest.mark.parametrize(
    ("devices", "encoding", "dtype", "matrix_dtype"),
    [
        ("cpu", "auto", DType.float32, DType.float32),
        ("cpu", "bfloat16", DType.float32, DType.bfloat16),
        ("gpu", "auto", DType.bfloat16, DType.bfloat16),
        ("gpu", "float32", DType.float32, DType.float32),
    ],
)
def test_activations_are_float32_on_cpu_whatever_the_weights_are(
    devices: str, encoding: str, dtype: DType, matrix_dtype: DType
) -> None:
    config = configured(FOLDERS[GEMMA_3], devices, encoding, {})
    assert (config.dtype, config.encoding.dtype) == (dtype, matrix_dtype)


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"devices": "cpu"}, DType.float32),
        ({"devices": "cpu", "kv_cache_dtype": "bfloat16"}, DType.bfloat16),
        ({"devices": "cpu", "kv_cache_dtype": "int8"}, DType.int8),
        ({"devices": "cpu", "quantization_encoding": "bfloat16", "activation_encoding": "bfloat16"}, DType.float32),
        ({"devices": "cpu", "quantization_encoding": "q4_0"}, DType.bfloat16),
        ({"devices": "cpu", "quantization_encoding": "q4_0", "activation_encoding": "float32"}, DType.float32),
        ({"devices": "cpu", "quantization_encoding": "q4_0", "kv_cache_dtype": "float32"}, DType.float32),
        ({"devices": "gpu"}, DType.bfloat16),
        ({"devices": "gpu", "kv_cache_dtype": "bfloat16"}, DType.bfloat16),
    ],
    ids=str,
)
def test_the_type_of_the_cache(fields: dict[str, str], dtype: DType) -> None:
    """All groups have it, and on CPU a graph reads and writes it."""
    folder = FOLDERS[GEMMA_4]
    architecture = architecture_of(folder)
    run = PipelineConfig(model=str(folder), **fields)  # type: ignore[arg-type]
    config = architecture.config.initialize_from_config(run, AutoConfig.from_pretrained(folder))
    assert {group.dtype for group in config.get_kv_params().groups} == {dtype}
    config.finalize(AutoConfig.from_pretrained(folder), state_dict_of(folder), "last_token")
    architecture.pipeline_model.build_graph(config)


@pytest.mark.parametrize("kv_cache_dtype", ["float32", "int8"])
def test_on_gpu_the_cache_has_the_type_of_the_activations(kv_cache_dtype: str) -> None:
    run = PipelineConfig(model=str(FOLDERS[GEMMA_3]), devices="gpu", kv_cache_dtype=kv_cache_dtype)
    with pytest.raises(
        ValueError, match=rf"--kv-cache-dtype\) {kv_cache_dtype} does not run on gpu \(auto and bfloat16"
    ):
        architecture_of(FOLDERS[GEMMA_3]).config.initialize_from_config(
            run, AutoConfig.from_pretrained(FOLDERS[GEMMA_3])
        )


def products_of(devices: str, encoding: str, activations: str, head: str = "auto") -> tuple[DType, DType]:
    """Types to which products of the matrices and of the head round activations, of Qwen 3."""
    folder = FOLDERS["Qwen__Qwen3-8B"]
    run = PipelineConfig(str(folder), None, None, devices, encoding, head, activations)
    config = architecture_of(folder).config.initialize_from_config(run, AutoConfig.from_pretrained(folder))
    return config.encoding.product_dtype, config.head_encoding.product_dtype


@pytest.mark.parametrize(
    ("run", "dtypes"),
    [
        (("cpu", "float32", "auto"), (DType.float32, DType.float32)),
        (("cpu", "bfloat16", "auto"), (DType.float32, DType.float32)),
        (("cpu", "bfloat16", "bfloat16"), (DType.bfloat16, DType.bfloat16)),
        (("cpu", "bfloat16", "bfloat16", "float32"), (DType.bfloat16, DType.float32)),
        (("cpu", "bfloat16", "bfloat16", "q8_0"), (DType.bfloat16, DType.int8)),
        (("cpu", "q4_0", "auto"), (DType.int8, DType.int8)),
        (("cpu", "q4_0", "float32"), (DType.float32, DType.float32)),
        (("cpu", "gguf", "bfloat16"), (DType.bfloat16, DType.bfloat16)),
    ],
)
def test_products_round_activations_as_the_run_asks(run: tuple[str, ...], dtypes: tuple[DType, DType]) -> None:
    assert products_of(*run) == dtypes


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (("cpu", "q4_0", "bfloat16"), "bfloat16 does not go with q4_0: choose one of auto, int8, float32"),
        (("cpu", "bfloat16", "int8"), "int8 does not go with bfloat16: choose one of auto, float32, bfloat16"),
        (("cpu", "float32", "bfloat16"), "bfloat16 does not go with float32: choose one of auto, float32"),
        (("gpu", "bfloat16", "float32"), "float32 does not go with bfloat16 on gpu: choose one of auto, bfloat16"),
    ],
)
def test_activations_that_an_encoding_does_not_have_are_refused(run: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=rf"activation_encoding \(--activation-encoding\) {message}"):
        products_of(*run)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("q4_0", "'q4_0' does not run on gpu"), ("float8_e4m3fn", "needs a checkpoint that is stored in it")],
)
def test_an_encoding_that_the_run_cannot_have_is_refused_by_name(encoding: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configured(FOLDERS["Qwen__Qwen3-8B"], "gpu", encoding, {})
