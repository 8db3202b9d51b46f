"""Weight adapters for GGUF files that text models share: names, and values that llama.cpp's converter changes.

Source: convert_hf_to_gguf.py and tensor_mapping.py of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData

from architectures.decoder.weight_adapters import StateDict, without_tied_head
from pipelines.loading.blocks import BlockFormat, stored_type
from pipelines.loading.cast import cast_into
from pipelines.loading.gguf.rope import ROPE_FREQS
from pipelines.loading.weights import rename

MODEL_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names that all families have."""
PRE_NORM_NAMES = LAYER_NAMES | {"ffn_norm": "post_attention_layernorm"}
"""Those of families with a norm before attention and one before the feed-forward block: Llama, Qwen."""
SANDWICH_NORM_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Those of families with a norm after each, too: Gemma."""
NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<name>\w+)\.(?P<kind>weight|bias)")


def adapt_gguf_text(
    tensors: StateDict,
    huggingface_config: Any,
    layer_names: Mapping[str, str] = PRE_NORM_NAMES,
    model_names: Mapping[str, str] = MODEL_NAMES,
) -> StateDict:
    """Gives the tensors of a text model the graph's names.

    The factors of RoPE are dropped: the configuration has them.

    Args:
        tensors: By the file's names.
        huggingface_config: The transformers configuration.
        layer_names: Names in a layer, the file's -> the graph's.
        model_names: The other names.

    Raises:
        KeyError: The architecture has no such tensor.
    """

    def adapt_name(name: str) -> str | None:
        match = NAME.fullmatch(name)
        if name == ROPE_FREQS:
            return None
        if match is None:
            raise KeyError(name)
        names, prefix = (model_names, "") if match["layer"] is None else (layer_names, f"layers.{int(match['layer'])}.")
        if match["name"] not in names:
            raise KeyError(name)
        return f"{prefix}{names[match['name']]}.{match['kind']}"

    return without_tied_head(rename(tensors, adapt_name), huggingface_config)


def minus_one(data: WeightData) -> WeightData:
    """Takes the 1 from the weight of a norm, which the converter adds for families that multiply by (1 + weight)."""
    if data.data is None:  # as while shapes are checked
        return data
    values = as_float32(data) - np.float32(1)
    return WeightData(values, data.name, DType.float32, Shape(values.shape))


def unpermuted(data: WeightData, num_heads: int) -> WeightData:
    """Undoes the permutation of the rows of queries or keys, with which pairs of RoPE are neighbours.

    The converter interleaves the halves of each head. Rows stay whole, so that it does not matter how they are stored.

    Args:
        data: A matrix or a bias.
        num_heads: Number of heads that its rows are made of.
    """
    rows = data.data
    if rows is None or int(data.shape[0]) % (2 * num_heads):  # a wrong shape is reported when shapes are checked
        return data
    assert isinstance(rows, np.ndarray)
    pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return replace(data, data=np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape))


def expert(data: WeightData, number: int) -> WeightData:
    """View of one expert's matrix; only its shape if there is no data, as while shapes are checked."""
    view = None if data.data is None else data.data[number]  # type: ignore[index]
    return replace(data, data=view, shape=Shape([int(dim) for dim in data.shape][1:]))


def as_float32(data: WeightData) -> npt.NDArray[np.float32]:
    """Values of a tensor of any type."""
    array, stored = data.data, stored_type(data)
    assert isinstance(array, np.ndarray)
    if isinstance(stored, BlockFormat):
        return stored.dequantize(array)
    values = np.empty(array.shape, np.float32)
    cast_into(values, DType.float32, array, stored)
    return values
