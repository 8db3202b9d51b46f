"""Gemma 4 checkpoint tensors -> graph weights."""

from __future__ import annotations

from typing import Any

from architectures.decoder.gguf_weight_adapters import MODEL_NAMES, SANDWICH_NORM_NAMES, adapt_gguf_text
from architectures.decoder.weight_adapters import StateDict, adapt_text_name, without_tied_head
from pipelines.loading.weights import rename

IMAGE_AND_AUDIO_PREFIXES = ("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio.")


GGUF_MODEL_NAMES = MODEL_NAMES | {
    "per_layer_token_embd": "embed_tokens_per_layer",
    "per_layer_model_proj": "per_layer_model_projection",
    "per_layer_proj_norm": "per_layer_projection_norm",
}
GGUF_LAYER_NAMES = SANDWICH_NORM_NAMES | {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "layer_output_scale": "layer_scalar",
}


def adapt_name(name: str) -> str | None:
    """Returns the graph's name for a checkpoint tensor, or None for one of the vision and audio parts.

    Raises:
        KeyError: No Gemma 4 checkpoint has this name.
    """
    return adapt_text_name(name, IMAGE_AND_AUDIO_PREFIXES)


def adapt(tensors: StateDict, huggingface_config: Any) -> StateDict:
    """Adapts the tensors of the text model.

    The keys and values that checkpoints store for layers with KV sharing are dropped: they are never read.
    """
    return without_tied_head(_without_unread(rename(tensors, adapt_name), huggingface_config), huggingface_config)


def adapt_gguf(tensors: StateDict, huggingface_config: Any) -> StateDict:
    """Adapts the tensors of a GGUF file, as `adapt` does."""
    adapted = adapt_gguf_text(tensors, huggingface_config, GGUF_LAYER_NAMES, GGUF_MODEL_NAMES)
    named = {name.replace("layer_scalar.weight", "layer_scalar"): data for name, data in adapted.items()}
    return _without_unread(named, huggingface_config)


def _without_unread(state_dict: StateDict, huggingface_config: Any) -> StateDict:
    text = huggingface_config.get_text_config()
    shared = range(text.num_hidden_layers - text.num_kv_shared_layers, text.num_hidden_layers)
    unread = {
        f"layers.{layer}.self_attn.{part}.weight"
        for layer in shared
        for part in ("k_proj", "v_proj", "k_norm", "v_norm")
    }
    return {name: data for name, data in state_dict.items() if name not in unread}
