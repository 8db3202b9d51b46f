"""Models as GGUF files, as llama.cpp's convert_hf_to_gguf.py writes them: metadata, names, and values that it changes.

Names are those of the gguf package's tensor_mapping, so that ours are compared with another table.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quant_shape_from_byte_shape, quantize
from gguf.tensor_mapping import get_tensor_name_map
from safetensors.torch import load_file
from transformers import AutoConfig

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

ARCHITECTURES = {
    "gemma3_text": MODEL_ARCH.GEMMA3,
    "gemma4_text": MODEL_ARCH.GEMMA4,
    "qwen3": MODEL_ARCH.QWEN3,
    "qwen3_moe": MODEL_ARCH.QWEN3MOE,
    "llama": MODEL_ARCH.LLAMA,
}
EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(\d+)\.(\w+\.weight)")
ROPE_FREQS = "rope_freqs.weight"


def text_config(folder: Path) -> dict[str, Any]:
    """The text part of a folder's configuration, with the defaults of transformers where config.json has nothing."""
    given = json.loads((folder / "config.json").read_text())
    given = given.get("text_config", given)
    text = AutoConfig.from_pretrained(folder).get_text_config()
    config = text.to_dict() | drop_none(given)
    config |= {"rope_parameters": text.rope_parameters, "layer_types": getattr(text, "layer_types", None)}
    if "global_head_dim" not in config and text.model_type == "gemma4_text":  # as transformers 5.20 and later save it
        full = text.per_layer_config[text.layer_types.index("full_attention")]
        sliding = text.per_layer_config[text.layer_types.index("sliding_attention")]
        config["global_head_dim"] = full.head_dim
        if full.num_key_value_heads != sliding.num_key_value_heads:
            config["num_global_key_value_heads"] = full.num_key_value_heads
    return config | {"model_type": text.model_type}


def drop_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def write_checkpoint(
    folder: Path,
    path: Path,
    stored_as: GGMLQuantizationType = GGMLQuantizationType.F32,
    dropped: tuple[str, ...] = (),
    **metadata: str | bool | int | float,
) -> Path:
    """Writes a safetensors checkpoint as a GGUF file. stored_as: the type of its matrices. dropped: file's names."""
    config = text_config(folder)
    writer = new_writer(path, config)
    for key, value in metadata.items():
        add_value(writer, key, value)
    tensors = file_tensors(read_tensors(folder), config)
    for name, values in tensors.items():
        if name not in dropped:
            add_tensor(writer, name, values, stored_as)
    finish(writer)
    return path


def read_tensors(folder: Path) -> Tensors:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor.float().numpy() for file in files for name, tensor in load_file(file).items()}


def add_tensor(writer: GGUFWriter, name: str, values: Array, stored_as: GGMLQuantizationType) -> None:
    """Vectors are always stored in float32, and so are routers."""
    if values.ndim < 2 or name.endswith(("_norm.weight", "ffn_gate_inp.weight")):
        stored_as = GGMLQuantizationType.F32
    data = quantize(np.ascontiguousarray(values), stored_as)
    if stored_as in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        writer.add_tensor(name, data)
    else:
        raw = data.view(np.uint8)
        assert quant_shape_from_byte_shape(raw.shape, stored_as) == values.shape
        writer.add_tensor(name, raw, raw_dtype=stored_as)


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_value(writer: GGUFWriter, key: str, value: str | bool | int | float) -> None:
    """Adds metadata; "__" in the key is a dot, which names of arguments can't have."""
    key = key.replace("__", ".")
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)


def new_writer(path: Path, config: Mapping[str, Any]) -> GGUFWriter:
    """A writer with the metadata of a configuration, and a vocabulary: "a", "b", "ab", "w3", "w4", ..."""
    writer = GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config["model_type"]]])
    add_config(writer, config)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab", *(f"w{number}" for number in range(3, config["vocab_size"]))])
    writer.add_token_types([TokenType.NORMAL] * config["vocab_size"])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(1)
    return writer


def file_tensors(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Tensors of a checkpoint -> those of the file, with the file's names and values."""
    names = get_tensor_name_map(ARCHITECTURES[config["model_type"]], config["num_hidden_layers"])
    dense = get_tensor_name_map(MODEL_ARCH.QWEN3, config["num_hidden_layers"])  # of layers between sparse ones
    adapted: Tensors = {}
    for name, values in stacked_experts(tensors).items():
        short = name.replace("language_model.", "")
        short = short if short.endswith((".weight", ".bias")) else f"{short}.weight"
        file_name = names.get_name(short, try_suffixes=(".weight", ".bias"))
        file_name = file_name or dense.get_name(short, try_suffixes=(".weight",))
        assert file_name is not None, name
        adapted[file_name] = file_values(name, values, config)
    factors = rope_factors(config)
    return adapted if factors is None else {ROPE_FREQS: factors, **adapted}


def stacked_experts(tensors: Tensors) -> Tensors:
    """One tensor for all experts of a projection; transformers 5 has gate and up in one."""
    stacked: Tensors = {}
    experts: dict[str, list[Array]] = {}
    for name, values in tensors.items():
        if match := EXPERT.fullmatch(name):
            experts.setdefault(f"{match[1]}.{match[3]}", []).append(values)
        elif name.endswith("mlp.experts.gate_up_proj"):
            gate, up = np.split(values, 2, axis=1)
            stacked |= {
                name.replace("gate_up_proj", f"{part}_proj.weight"): v for part, v in (("gate", gate), ("up", up))
            }
        elif name.endswith("mlp.experts.down_proj"):
            stacked[f"{name}.weight"] = values
        else:
            stacked[name] = values
    return stacked | {name: np.stack(values) for name, values in experts.items()}


def file_values(name: str, values: Array, config: Mapping[str, Any]) -> Array:
    if config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
        return values + 1
    if config["model_type"] == "llama" and re.search(r"\.[qk]_proj\.", name):
        heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
        return permuted(values, heads)
    return values


def permuted(values: Array, num_heads: int) -> Array:
    """Rows of queries or keys in the order of RoPE's pairs, head by head: row by row, so that it can be read."""
    size = len(values) // num_heads
    order = [
        head * size + half * size // 2 + pair
        for head in range(num_heads)
        for pair in range(size // 2)
        for half in (0, 1)
    ]
    return values[order]


def rope_factors(config: Mapping[str, Any]) -> Array | None:
    """Factors of the frequencies that the file has in a tensor."""
    rope, model_type = config["rope_parameters"], config["model_type"]
    if model_type == "gemma4_text":
        head_dim, part = config["global_head_dim"], rope["full_attention"]["partial_rotary_factor"]
        num_rotated = int(head_dim * part / 2)
        return np.array([1.0] * num_rotated + [1e30] * (head_dim // 2 - num_rotated), np.float32)
    if model_type != "llama" or rope["rope_type"] != "llama3":
        return None
    return np.array([llama3_factor(rope, i / config["head_dim"]) for i in range(0, config["head_dim"], 2)], np.float32)


def llama3_factor(rope: Mapping[str, Any], exponent: float) -> float:
    wavelength = 2 * math.pi * rope["rope_theta"] ** exponent
    length, low, high = (rope[f] for f in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    if wavelength < length / high:
        return 1.0
    if wavelength > length / low:
        return float(rope["factor"])
    smooth = (length / wavelength - low) / (high - low)
    return float(1 / ((1 - smooth) / rope["factor"] + smooth))


def add_config(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    """Metadata of a configuration; Gemma's pattern of layers too, which llama.cpp knows by itself for Gemma 3."""
    head_dim = config["head_dim"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    add_rope(writer, config["rope_parameters"])
    is_gemma4 = config["model_type"] == "gemma4_text"
    if is_gemma4:
        add_gemma4(writer, config)
    else:
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if config["model_type"] == "qwen3_moe":
        writer.add_expert_count(config.get("num_experts") or config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if config["model_type"] == "llama":
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(head_dim)
    if config["model_type"].startswith("gemma"):
        writer.add_sliding_window(config["sliding_window"])
        if config.get("final_logit_softcapping"):
            writer.add_final_logit_softcapping(config["final_logit_softcapping"])
        is_sliding = [layer_type == "sliding_attention" for layer_type in config["layer_types"]]
        if is_gemma4 or is_sliding != [(layer + 1) % 6 > 0 for layer in range(len(is_sliding))]:
            writer.add_sliding_window_pattern(is_sliding)


def add_rope(writer: GGUFWriter, rope_parameters: Mapping[str, Any]) -> None:
    rope = rope_parameters.get("full_attention", rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if "sliding_attention" in rope_parameters:
        writer.add_rope_freq_base_swa(rope_parameters["sliding_attention"]["rope_theta"])
    if rope["rope_type"] not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
    writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def add_gemma4(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    num_layers, num_shared = config["num_hidden_layers"], config["num_kv_shared_layers"]
    size, num_kv_heads = config["intermediate_size"], config["num_key_value_heads"]
    double = config.get("use_double_wide_mlp")
    sizes = [size * (2 if layer >= num_layers - num_shared else 1) for layer in range(num_layers)]
    writer.add_feed_forward_length(sizes if double else size)
    num_global = config.get("num_global_key_value_heads")
    is_full = [layer_type == "full_attention" for layer_type in config["layer_types"]]
    writer.add_head_count_kv([num_global if full else num_kv_heads for full in is_full] if num_global else num_kv_heads)
    writer.add_key_length(config["global_head_dim"])
    writer.add_value_length(config["global_head_dim"])
    writer.add_key_length_swa(config["head_dim"])
    writer.add_value_length_swa(config["head_dim"])
    writer.add_shared_kv_layers(num_shared)
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    writer.add_rope_dimension_count(config["global_head_dim"])
    writer.add_rope_dimension_count_swa(config["head_dim"])
