"""Gemma 3 checkpoint tensors -> graph weights."""

from __future__ import annotations

from typing import Any

from architectures.decoder.gguf_weight_adapters import SANDWICH_NORM_NAMES, adapt_gguf_text, minus_one
from architectures.decoder.weight_adapters import StateDict, adapt_text_name, without_tied_head
from pipelines.loading.weights import rename

IMAGE_PREFIXES = (
    "vision_tower.",
    "model.vision_tower.",
    "multi_modal_projector.",
    "model.multi_modal_projector.",
)


def adapt_name(name: str) -> str | None:
    """Returns the graph's name for a checkpoint tensor, or None for one of the vision part.

    Raises:
        KeyError: No Gemma 3 checkpoint has this name.
    """
    return adapt_text_name(name, IMAGE_PREFIXES)


def adapt(tensors: StateDict, huggingface_config: Any) -> StateDict:
    """Adapts the tensors of the text model."""
    return without_tied_head(rename(tensors, adapt_name), huggingface_config)


def adapt_gguf(tensors: StateDict, huggingface_config: Any) -> StateDict:
    """Adapts the tensors of a GGUF file, whose norms have the 1 of (1 + weight) in them."""
    adapted = adapt_gguf_text(tensors, huggingface_config, SANDWICH_NORM_NAMES)
    return {name: minus_one(data) if name.endswith("norm.weight") else data for name, data in adapted.items()}
