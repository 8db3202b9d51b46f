"""Gemma 4 checkpoint names -> graph weight names."""

from __future__ import annotations

from typing import Any

from architectures.decoder.weight_adapters import StateDict, adapt_text_name, without_tied_head
from pipelines.loading.weights import rename

IMAGE_AND_AUDIO_PREFIXES = ("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio.")


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
    text = huggingface_config.get_text_config()
    shared = range(text.num_hidden_layers - text.num_kv_shared_layers, text.num_hidden_layers)
    unread = {
        f"layers.{layer}.self_attn.{part}.weight"
        for layer in shared
        for part in ("k_proj", "v_proj", "k_norm", "v_norm")
    }
    renamed = rename(tensors, adapt_name)
    return without_tied_head({name: data for name, data in renamed.items() if name not in unread}, huggingface_config)
