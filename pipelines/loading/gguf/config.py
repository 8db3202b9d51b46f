"""The configuration of a model in GGUF files, in the terms of transformers.

Source: llama.cpp's convert_hf_to_gguf.py, which writes the metadata from config.json. What it leaves out follows from
the tensors (tied heads, biases, dense layers), or is the same for all models of the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.errors import InputError
from pipelines.gguf_metadata import printable
from pipelines.loading.gguf.description import FULL, SLIDING, Config, Description, num_embeddings
from pipelines.loading.gguf.file import GgufModel
from pipelines.loading.gguf.rope import default_rope, llama3_rope, rotated_fraction, scaled_rope

GEMMA3_PATTERN = 6  # every sixth layer is full, in all sizes
GEMMA3_NUM_LAYERS_27B = 62  # the size whose scores are not scaled by the head's


@dataclass(frozen=True)
class Family:
    """The models of one `general.architecture`. model_type, architecture: those of config.json."""

    model_type: str
    architecture: str
    fields: Callable[[Description], Config]


def gguf_family(model: GgufModel) -> Family:
    """Returns the family of the model in these files.

    Raises:
        InputError: It is none of those that are supported.
    """
    if model.architecture not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise InputError(
            f"{model.name} is a model of architecture '{printable(model.architecture)}', which is not supported "
            f"in GGUF files; supported: {supported}"
        )
    return FAMILIES[model.architecture]


def gguf_config(model: GgufModel) -> Config:
    """Returns what config.json would say of the text model in these files.

    Raises:
        InputError: The architecture is not supported, or a key is missing or wrong; the message names it.
    """
    family = gguf_family(model)
    config = family.fields(Description(model))
    return config | {"model_type": family.model_type, "architectures": [family.architecture]}


def _gemma3(description: Description) -> Config:
    config = description.common()
    is_27b = description.num_layers == GEMMA3_NUM_LAYERS_27B
    window = description.count("attention.sliding_window", 0)
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        # The file doesn't have it; llama.cpp knows it by the size too.
        "query_pre_attn_scalar": description.hidden_size // description.num_heads if is_27b else description.head_dim,
        "final_logit_softcapping": description.number("final_logit_softcapping", 0.0) or None,
        "sliding_window": window or config["max_position_embeddings"],
        "layer_types": description.layer_types(GEMMA3_PATTERN) if window else [FULL] * description.num_layers,
        "rope_parameters": {
            FULL: scaled_rope(description.model, description.rope_theta()),
            SLIDING: default_rope(description.rope_theta("_swa")),
        },
    }


def _gemma4(description: Description) -> Config:
    layer_types, head_dim = description.layer_types(None), description.size("attention.key_length_swa")
    num_shared = description.count("attention.shared_kv_layers", 0)
    if num_shared > description.num_layers:
        raise description.metadata.wrong(description.key("attention.shared_kv_layers"), "fewer than the layers")
    intermediate_size, is_double_wide = _feed_forward(description, num_shared)
    kv_heads = _kv_heads(description, layer_types)
    with_values = description.layers_with("attn_v.weight")
    own = range(description.num_layers - num_shared)
    table = description.model.tensors.get("per_layer_token_embd.weight")
    theta, global_head_dim = description.rope_theta(), description.head_dim
    return description.common(intermediate_size, kv_heads[SLIDING]) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": head_dim,
        "global_head_dim": global_head_dim,
        "num_global_key_value_heads": kv_heads[FULL],
        "attention_k_eq_v": any(layer_types[layer] == FULL and layer not in with_values for layer in own),
        "final_logit_softcapping": description.number("final_logit_softcapping", 0.0) or None,
        "sliding_window": description.count("attention.sliding_window"),
        "layer_types": layer_types,
        "num_kv_shared_layers": num_shared,
        "use_double_wide_mlp": is_double_wide,
        "hidden_size_per_layer_input": description.count("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": num_embeddings(description.model) if table is None else table.shape[0],
        "enable_moe_block": description.count("expert_count", 0) > 0,
        "rope_parameters": {
            FULL: {
                "rope_type": "proportional",
                "rope_theta": theta,
                "partial_rotary_factor": rotated_fraction(description.model, global_head_dim),
            },
            SLIDING: description.partial(default_rope(description.rope_theta("_swa")), head_dim, "_swa"),
        },
    }


def _feed_forward(description: Description, num_shared: int) -> tuple[int, bool]:
    """Returns the width of Gemma 4's feed-forward blocks, and whether those of layers with KV sharing have twice it."""
    sizes = list(description.counts("feed_forward_length"))
    size, num_own = sizes[0], len(sizes) - num_shared
    for factor in (1, 2):
        if sizes == [size] * num_own + [size * factor] * num_shared:
            return size, factor == 2
    raise description.metadata.wrong(
        description.key("feed_forward_length"), f"{size} in all layers, or twice it in the last {num_shared}"
    )


def _kv_heads(description: Description, layer_types: Sequence[str]) -> dict[str, int]:
    """Returns the number of key/value heads of sliding and of full layers."""
    counts = description.counts("attention.head_count_kv", description.num_heads)
    heads = dict(zip(layer_types, counts, strict=True))
    if [heads[layer_type] for layer_type in layer_types] != list(counts):
        raise description.metadata.wrong(
            description.key("attention.head_count_kv"), "the same in all sliding and in all full layers"
        )
    return {layer_type: heads.get(layer_type, counts[0]) for layer_type in (SLIDING, FULL)}


def _qwen3(description: Description) -> Config:
    rope = scaled_rope(description.model, description.rope_theta())
    return description.common() | {
        "hidden_act": "silu",
        "use_sliding_window": False,
        "sliding_window": None,
        "rope_parameters": description.partial(rope, description.head_dim),
    }


def _qwen3_moe(description: Description) -> Config:
    sparse = description.layers_with("ffn_gate_inp.weight")
    return _qwen3(description) | {
        "num_experts": description.count("expert_count"),
        "num_experts_per_tok": description.count("expert_used_count"),
        "moe_intermediate_size": description.count("expert_feed_forward_length"),
        "norm_topk_prob": description.metadata.flag(description.key("expert_weights_norm"), True),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer in range(description.num_layers) if layer not in sparse],
    }


def _llama(description: Description) -> Config:
    if description.count("expert_count", 0):
        raise description.metadata.wrong(description.key("expert_count"), "0: experts are not supported for llama")
    rope = llama3_rope(description.model, description.rope_theta(), description.head_dim)
    return description.common() | {
        "hidden_act": "silu",
        "mlp_bias": description.has_tensor("blk.0.ffn_up.bias"),
        "rope_parameters": description.partial(rope, description.head_dim),
    }


FAMILIES = {
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _gemma3),
    "gemma4": Family("gemma4_text", "Gemma4ForCausalLM", _gemma4),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _qwen3),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", _qwen3_moe),
    "llama": Family("llama", "LlamaForCausalLM", _llama),
}
"""Families by their `general.architecture`."""
