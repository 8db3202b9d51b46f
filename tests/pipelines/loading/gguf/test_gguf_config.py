"""The metadata of GGUF files gives every field of the configurations that architectures read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import gguf_models
import numpy as np
import pytest
from gguf import GGUFWriter
from published import FOLDERS, SUPPORTED, tensors_of
from transformers import AutoConfig

from pipelines import PipelineConfig
from pipelines.errors import InputError
from pipelines.loading.checkpoint import resolve_config
from pipelines.loading.gguf.config import gguf_config
from pipelines.loading.gguf.file import open_gguf
from pipelines.registry import Registry

PUBLISHED = {name: folder for name, folder in SUPPORTED.items() if not name.endswith("FP8")}
IMAGES = ("vision", "audio", "projector")
RUN = PipelineConfig(quantization_encoding="float32")
TINY: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 128,
    "rms_norm_eps": 1e-5,
    "vocab_size": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def write_metadata(folder: Path, path: Path) -> Path:
    """The metadata of a published model, with all of its tensors' names; their values are left out."""
    config = gguf_models.text_config(folder)
    names = [name for name in tensors_of(folder) if not any(part in name for part in IMAGES)]
    shared = range(config["num_hidden_layers"] - (config.get("num_kv_shared_layers") or 0), config["num_hidden_layers"])
    unread = tuple(f"layers.{layer}.self_attn.{part}" for layer in shared for part in ("k_", "v_"))
    values = {name: np.zeros((64, 1) if "embed_tokens" in name else 64, np.float32) for name in names}
    tensors = gguf_models.file_tensors({n: v for n, v in values.items() if not any(u in n for u in unread)}, config)
    writer = gguf_models.new_writer(path, config)
    for name, value in tensors.items():
        if value.ndim == 2:
            value = np.zeros((config["vocab_size"], 1), np.float32)
        elif name == "output.weight":  # the converter keeps heads that repeat the embedding
            value = np.full((config["vocab_size"], 1), 0 if config["tie_word_embeddings"] else 1, np.float32)
        writer.add_tensor(name, value)
    gguf_models.finish(writer)
    return path


def comparable(config: Any) -> dict[str, Any]:
    """Fields of an ArchConfig. RoPE is compared by what comes of it."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    dims = config.rope_dims
    fields["rope_parameters"] = {
        layer_type: (rope.theta, rope.rope_type, rope.attention_factor, rope.frequencies(dims[layer_type]).tolist())
        for layer_type, rope in config.rope_parameters.items()
    }
    return fields


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model(name: str, tmp_path: Path) -> None:
    folder = PUBLISHED[name]
    checkpoint = resolve_config(str(write_metadata(folder, tmp_path / "model.gguf")))
    published = AutoConfig.from_pretrained(folder)
    architecture = Registry.load().find(checkpoint.architectures)
    found = architecture.config.initialize_from_config(RUN, checkpoint.huggingface_config)
    assert comparable(found) == comparable(architecture.config.initialize_from_config(RUN, published))
    is_tied = bool(published.get_text_config().tie_word_embeddings)
    assert bool(checkpoint.huggingface_config.tie_word_embeddings) == is_tied


def test_experts_of_gemma_4_are_refused(tmp_path: Path) -> None:
    config = gguf_models.text_config(FOLDERS["google__gemma-4-31B-it"])
    writer = gguf_models.new_writer(tmp_path / "x.gguf", config)
    writer.add_expert_count(128)
    for layer in range(config["num_hidden_layers"]):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.zeros(1, np.float32))
    writer.add_tensor("token_embd.weight", np.zeros((4, 1), np.float32))
    gguf_models.finish(writer)
    checkpoint = resolve_config(str(tmp_path / "x.gguf"))
    assert checkpoint.huggingface_config.enable_moe_block is True


def test_yarn_and_biases(checkpoints: Any, tmp_path: Path) -> None:
    config = gguf_config(open_gguf(gguf_models.write_checkpoint(checkpoints["qwen3_bias"], tmp_path / "x.gguf")))
    assert config["attention_bias"] is True
    assert config["tie_word_embeddings"] is False
    assert config["rope_parameters"] == {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 512,
    }


def test_dense_layers_between_sparse_ones(checkpoints: Any, tmp_path: Path) -> None:
    config = gguf_config(open_gguf(gguf_models.write_checkpoint(checkpoints["qwen3_moe"], tmp_path / "x.gguf")))
    assert (config["mlp_only_layers"], config["num_experts"], config["moe_intermediate_size"]) == ([1], 6, 48)


def written(path: Path, changes: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> Path:
    """A tiny Llama. changes: values of keys; None removes one. tensors: further ones; None removes one."""
    writer = gguf_models.new_writer(path, TINY)
    for key, value in (changes or {}).items():
        writer.kv_data[0].pop(key, None)
        if value is not None:
            add(writer, key, value)
    values = {f"blk.{layer}.attn_norm.weight": np.zeros(64, np.float32) for layer in range(2)}
    values |= {"token_embd.weight": np.zeros((16, 64), np.float32), **(tensors or {})}
    for name, array in values.items():
        if array is not None:
            writer.add_tensor(name, array)
    gguf_models.finish(writer)
    return path


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        gguf_models.add_value(writer, key, value)


@pytest.mark.parametrize("length", [256, 8192, 8191])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama_3_is_found_in_its_factors(tmp_path: Path, length: int, factor: float) -> None:
    rope = LLAMA3 | {"factor": factor, "original_max_position_embeddings": length}
    factors = gguf_models.rope_factors(TINY | {"rope_parameters": rope})
    model = open_gguf(written(tmp_path / "x.gguf", tensors={"rope_freqs.weight": factors}))
    assert gguf_config(model)["rope_parameters"] == rope


def test_a_scaling_that_leaves_no_frequency_between(tmp_path: Path) -> None:
    factors = np.array([1.0] * 20 + [8.0] * 12, np.float32)
    model = open_gguf(written(tmp_path / "x.gguf", tensors={"rope_freqs.weight": factors}))
    with pytest.raises(InputError, match=r"rope_freqs\.weight"):  # neighbours are closer than a factor of 4
        gguf_config(model)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba', which is not supported in GGUF files; supported: "),
        ({"llama.block_count": None}, "has no llama.block_count"),
        ({"llama.block_count": 4_000_000_000}, "llama.block_count in"),
        ({"llama.block_count": 3}, "it must be 2, the number of layers that have tensors"),
        ({"llama.block_count": "two"}, "llama.block_count in"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count in"),
        ({"llama.attention.head_count": [4, 2]}, "it must be the same in all layers"),
        ({"llama.attention.head_count_kv": [2, 2, 2]}, "a whole number, or one for each of 2 layers"),
        ({"llama.attention.value_length": 32}, "it must be 64, as the key_length"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "has no llama.attention.layer_norm_rms_epsilon"),
        ({"llama.attention.layer_norm_rms_epsilon": "x"}, "it must be a number"),
        ({"llama.attention.key_length": 0}, "it must be 1 or more"),
        ({"llama.rope.freq_base": 0.0}, "it must be more than 0"),
        ({"llama.rope.freq_base": float("nan")}, "it must be more than 0"),
        ({"llama.expert_count": 8}, "experts are not supported for llama"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope', which is not supported (linear and yarn are)"),
        ({"llama.rope.scaling.type": "linear"}, "has no llama.rope.scaling.factor"),
        ({"tokenizer.ggml.eos_token_id": 16}, "less than 16, the size of the vocabulary"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "a number for each of 16 tokens"),
        ({"tokenizer.ggml.tokens": None}, "has no tokenizer.ggml.tokens"),
    ],
)
def test_metadata_that_is_missing_or_wrong(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    path = written(tmp_path / "x.gguf", changes)
    with pytest.raises(InputError) as caught:
        resolve_config(str(path))
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_tiny_file_itself_is_right(tmp_path: Path) -> None:
    assert resolve_config(str(written(tmp_path / "x.gguf"))).huggingface_config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"token_embd.weight": None}, "has no embeddings"),
        ({"token_embd.weight": np.zeros(16, np.float32)}, "has no embeddings"),
        ({"rope_freqs.weight": np.ones(7, np.float32)}, "is f32 [7]: it must be f32 [32]"),
        ({"rope_freqs.weight": np.ones(32, np.float32)}, "does not hold the factors of Llama 3.1's RoPE scaling"),
        ({"rope_freqs.weight": np.linspace(1, 8, 32, dtype=np.float32)}, "does not hold the factors"),
        ({"rope_freqs.weight": np.full(32, np.nan, np.float32)}, "does not hold the factors"),
        ({"rope_freqs.weight": np.full(32, -np.inf, np.float32)}, "does not hold the factors"),
        ({"rope_freqs.weight": np.zeros(32, np.float32)}, "does not hold the factors"),
        ({"rope_freqs.weight": np.ones(32, np.float16)}, "is f16 [32]: it must be f32 [32]"),
    ],
)
def test_tensors_that_the_configuration_needs(tmp_path: Path, tensors: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_config(str(written(tmp_path / "x.gguf", tensors=tensors)))
    assert expected in str(caught.value)


def test_the_ends_of_answers_and_sampling(tmp_path: Path) -> None:
    tokens = [f"w{number}" for number in range(13)] + ["<|eot_id|>", "<|eom_id|>", "<|im_end|>"]
    changes = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 13 + [3, 3, 1],
        "tokenizer.ggml.eos_token_id": 7,
        "tokenizer.ggml.bos_token_id": 4,
        "tokenizer.ggml.eot_token_id": 14,
        "general.sampling.top_k": 64,
        "general.sampling.top_p": 0.95,
        "general.sampling.temp": 0.6,
        "general.sampling.penalty_repeat": 1.5,
    }
    checkpoint = resolve_config(str(written(tmp_path / "x.gguf", changes)))
    assert checkpoint.eos_token_ids == (7, 14, 13)  # a word that only looks so is no end
    assert checkpoint.generation_config == {
        "eos_token_id": [7, 14, 13],
        "bos_token_id": 4,
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 64,
        "top_p": 0.95,
        "repetition_penalty": 1.5,
    }


def test_no_sampling_defaults(tmp_path: Path) -> None:
    assert resolve_config(str(written(tmp_path / "x.gguf"))).generation_config == {"eos_token_id": [1]}


@pytest.mark.parametrize(
    ("changes", "is_base"),
    [
        ({}, True),
        ({"tokenizer.chat_template": "{{ messages }}"}, False),
        ({"tokenizer.chat_template": "{{ messages }}", "general.name": "Qwen3 0.6B Base"}, True),
        ({"tokenizer.chat_template": "{{ messages }}", "general.finetune": "pt"}, True),
        ({"tokenizer.chat_template": "{{ messages }}", "general.finetune": "it"}, False),
    ],
)
def test_a_base_model(tmp_path: Path, changes: dict[str, Any], is_base: bool) -> None:
    assert resolve_config(str(written(tmp_path / "model-it.gguf", changes))).is_base_model == is_base


def test_the_constants_of_the_gguf_package() -> None:
    assert gguf.TokenType.CONTROL == 3
    assert gguf.TokenType.USER_DEFINED == 4


def test_what_a_folder_has_comes_first(tmp_path: Path) -> None:
    written(tmp_path / "x.gguf", {"llama.context_length": 2048})
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    checkpoint = resolve_config(str(tmp_path))
    assert checkpoint.weights_format == "gguf"
    assert checkpoint.eos_token_ids == (5,)
    assert checkpoint.huggingface_config.max_position_embeddings == 512
    assert checkpoint.huggingface_config.vocab_size == 16  # the rows that the file has
    assert resolve_config(str(tmp_path / "x.gguf")).huggingface_config.max_position_embeddings == 2048


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3", "gemma4", "qwen3_moe"])
def test_damaged_metadata(checkpoints: Any, name: str, tmp_path: Path) -> None:
    """Bytes of the metadata are changed: an error in one line, or a model; never another exception."""
    path = gguf_models.write_checkpoint(checkpoints[name], tmp_path / "x.gguf")
    original = path.read_bytes()
    keys = original.index(b"tokenizer.ggml.model")
    tokens = original.index(b"tokenizer.ggml.eos_token_id")
    places = [*range(20, keys), *range(tokens, tokens + 60)]
    random = np.random.default_rng(0)
    num_refused = 0
    for _ in range(400):
        data = bytearray(original)
        data[int(random.choice(places))] = int(random.integers(256))
        path.write_bytes(data)
        try:
            checkpoint = resolve_config(str(path))
            _ = (checkpoint.dtype, checkpoint.eos_token_ids, checkpoint.huggingface_config, checkpoint.is_base_model)
        except InputError as error:
            assert "\n" not in str(error)
            num_refused += 1
    assert 40 < num_refused < 400
