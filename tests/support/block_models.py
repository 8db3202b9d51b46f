"""A random checkpoint as a GGUF file of many types, and its twin in safetensors with the same values in float32."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf_models import add_tensor, file_tensors, finish, new_writer, read_tensors, text_config
from max.dtype import DType
from safetensors.torch import load_file, save_file
from tiny_models import qwen3_wide

from pipelines.loading.blocks import FORMATS
from pipelines.loading.quantize import quantize

TYPES = {
    r"token_embd.weight": "q6_k",
    r"blk.0.attn_[qk].weight": "q4_k",
    r"blk.0.attn_v.weight": "q6_k",
    r"blk.0.attn_output.weight": "q5_0",
    r"blk.0.ffn_(gate|up).weight": "q4_k",
    r"blk.0.ffn_down.weight": "q6_k",
    r"blk.1.attn_(q|k|v).weight": "q4_0",
    r"blk.1.attn_output.weight": "q5_1",
    r"blk.1.ffn_(gate|up).weight": "q8_0",
    r"blk.1.ffn_down.weight": "q5_k",
    r"blk.2.attn_q.weight": "q8_0",
    r"blk.2.attn_k.weight": "bf16",
    r"blk.2.attn_v.weight": "f32",
    r"blk.2.ffn_gate.weight": "q4_1",
    r"blk.2.ffn_up.weight": "q5_0",
}
"""Types by the file's names; what matches none is in float32."""


def type_of(name: str) -> str:
    return next((stored_as for pattern, stored_as in TYPES.items() if re.fullmatch(pattern, name)), "f32")


def qwen3_gguf(folder: Path) -> None:
    """A folder with a GGUF file and nothing else: queries, keys and values of one type, of two, and of three."""
    original = folder.with_name(f"{folder.name}-original")
    qwen3_wide(original)
    folder.mkdir()
    config = text_config(original)
    writer = new_writer(folder / "model.gguf", config)
    for name, values in file_tensors(read_tensors(original), config).items():
        stored_as = type_of(name)
        if stored_as in FORMATS:
            blocks = quantize(np.ascontiguousarray(values), DType.float32, FORMATS[stored_as], name)
            writer.add_tensor(name, blocks, raw_dtype=FORMATS[stored_as].ggml_type)
        else:
            add_tensor(writer, name, values, gguf.GGMLQuantizationType[stored_as.upper()])
    finish(writer)


def qwen3_gguf_twin(folder: Path) -> None:
    """The same model for transformers: each matrix rounded as the file has it."""
    qwen3_wide(folder)
    tensors = load_file(folder / "model.safetensors")
    names = {file_name: name for name, file_name in file_names(folder).items()}
    for file_name, name in names.items():
        values, stored_as = np.ascontiguousarray(tensors[name].float().numpy()), type_of(file_name)
        if stored_as in FORMATS:
            blocks = quantize(values, DType.float32, FORMATS[stored_as], name)
            values = gguf.quants.dequantize(blocks, FORMATS[stored_as].ggml_type)
        dtype = torch.bfloat16 if stored_as == "bf16" else torch.float32
        tensors[name] = torch.from_numpy(values).to(dtype).float()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def file_names(folder: Path) -> dict[str, str]:
    """The file's names by those of the checkpoint."""
    config = text_config(folder)
    return {name: next(iter(file_tensors({name: values}, config))) for name, values in read_tensors(folder).items()}


def rounded_to_int8(x: torch.Tensor) -> torch.Tensor:
    """Activations [..., columns] as products with int8 see them: 127 steps to the largest of each group of 32."""
    groups = x.reshape(*x.shape[:-1], -1, 32)
    steps = groups.abs().amax(-1, keepdim=True) / 127
    rounded = torch.where(steps > 0, (groups / steps).round() * steps, torch.zeros(()))
    return rounded.reshape(x.shape)
