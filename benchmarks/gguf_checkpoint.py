"""Gemma 3 and Qwen 3 checkpoints as GGUF files, as llama.cpp's own converter writes them (its convert_hf_to_gguf.py).

Norms are stored in float32, Gemma's plus one; matrices in float32, bfloat16 or blocks. The tokenizer must
be a byte-level BPE, as that of the demo model is; `pad_tokenizer` gives it as many entries as a checkpoint in another
shape needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quant_shape_to_byte_shape
from gguf.tensor_mapping import get_tensor_name_map
from max.dtype import DType

from pipelines.loading.blocks import FORMATS
from pipelines.loading.quantize import quantize
from pipelines.loading.safetensors_file import StoredTensor, read_tensors

FILE_TYPES = {
    "float32": LlamaFileType.ALL_F32,
    "bfloat16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
    "q5_k": LlamaFileType.MOSTLY_Q5_K_M,
    "q5_1": LlamaFileType.MOSTLY_Q5_1,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q4_k": LlamaFileType.MOSTLY_Q4_K_M,
    "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
STORED_AS = {
    "float32": GGMLQuantizationType.F32,
    "bfloat16": GGMLQuantizationType.BF16,
} | {name: block_format.ggml_type for name, block_format in FORMATS.items()}
ARCHITECTURES = {"Gemma3ForCausalLM": MODEL_ARCH.GEMMA3, "Qwen3ForCausalLM": MODEL_ARCH.QWEN3}
HEADS = ("model.embed_tokens.weight", "lm_head.weight")


def write_gguf(folder: Path, path: Path, encoding: str, head_encoding: str | None = None) -> Path:
    """Writes the checkpoint of a folder as a GGUF file.

    Args:
        folder: A checkpoint of one of ARCHITECTURES, with tensors in bfloat16.
        path: The file to write.
        encoding: One of FILE_TYPES.
        head_encoding: That of the embedding and the head; None: as the other matrices.
    """
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["architectures"][0]]
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[architecture])
    add_config(writer, config)
    writer.add_file_type(FILE_TYPES[encoding])
    add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()), config)
    names = get_tensor_name_map(architecture, config["num_hidden_layers"])
    tensors = [tensor for file in sorted(folder.glob("*.safetensors")) for tensor in read_tensors(file)]
    types = [type_of(tensor, encoding, head_encoding or encoding) for tensor in tensors]
    for tensor, stored_as in zip(tensors, types, strict=True):
        # The header says the shape in bytes of what is no type of numpy.
        shape = quant_shape_to_byte_shape(tensor.shape, stored_as) if is_packed(stored_as) else tensor.shape
        dtype = np.dtype(np.uint8 if is_packed(stored_as) else np.float32)
        name = names.get_name(tensor.name, try_suffixes=(".weight",))
        assert name is not None, tensor.name
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    is_gemma = architecture == MODEL_ARCH.GEMMA3
    for tensor, stored_as in zip(tensors, types, strict=True):
        writer.write_tensor_data(values_of(tensor, stored_as, is_gemma))
    writer.close()
    return path


def is_packed(stored_as: GGMLQuantizationType) -> bool:
    """Whether the values are bytes to gguf: bfloat16 and blocks."""
    return stored_as != GGMLQuantizationType.F32


def type_of(tensor: StoredTensor, encoding: str, head_encoding: str) -> GGMLQuantizationType:
    """The type in which a tensor is stored."""
    if len(tensor.shape) == 1:
        return GGMLQuantizationType.F32
    return STORED_AS[head_encoding if tensor.name in HEADS else encoding]


def values_of(tensor: StoredTensor, stored_as: GGMLQuantizationType, is_gemma: bool) -> npt.NDArray[Any]:
    """The values as the file has them."""
    assert tensor.dtype_name == "BF16", tensor.name
    bits = tensor.data.view(np.uint16).reshape(tensor.shape)
    if stored_as == GGMLQuantizationType.BF16:
        return bits
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    if is_packed(stored_as):
        return quantize(values, DType.float32, FORMATS[stored_as.name.lower()], tensor.name)
    return values + 1 if is_gemma and tensor.name.endswith("norm.weight") else values


def add_config(writer: GGUFWriter, config: dict[str, Any]) -> None:
    """Writes the keys of the model's shape."""
    if config.get("rope_scaling"):
        raise ValueError("a rope_scaling is not written")
    rope = config.get("rope_parameters", {})
    full = rope.get("full_attention", rope)
    writer.add_name("benchmark")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(full.get("rope_theta") or config["rope_theta"])
    if config["architectures"] == ["Gemma3ForCausalLM"]:
        add_sliding_window(writer, config)


def add_sliding_window(writer: GGUFWriter, config: dict[str, Any]) -> None:
    """Writes Gemma's keys of its sliding layers."""
    if config["query_pre_attn_scalar"] != config["head_dim"]:
        raise ValueError("llama.cpp takes the scale from the size of the published models")
    local = config.get("rope_parameters", {}).get("sliding_attention", {})
    writer.add_rope_freq_base_swa(local.get("rope_theta") or config["rope_local_base_freq"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern(sliding_window_pattern(config))


def sliding_window_pattern(config: dict[str, Any]) -> int:
    """The number of layers of which the last one is full."""
    types = config.get("layer_types")
    return types.index("full_attention") + 1 if types else config["sliding_window_pattern"]


def add_tokenizer(writer: GGUFWriter, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes a byte-level BPE."""
    model = tokenizer["model"]
    assert model["type"] == "BPE" and tokenizer["pre_tokenizer"]["type"] == "ByteLevel"
    special = {token["id"] for token in tokenizer["added_tokens"]}
    texts = {number: text for text, number in model["vocab"].items()}
    texts |= {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts[number] for number in range(config["vocab_size"])])
    types = [TokenType.CONTROL if number in special else TokenType.NORMAL for number in range(config["vocab_size"])]
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    end = config["eos_token_id"]
    ends = end if isinstance(end, list) else [end]
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(ends[0])
    writer.add_eot_token_id(ends[-1])
    if "pad_token_id" in config:
        writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(True)


def pad_tokenizer(folder: Path) -> None:
    """Gives the tokenizer of a folder an entry for each row of the embedding, so that every token has a text."""
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab |= {f"<unused{number}>": number for number in range(len(vocab), size)}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))
