"""Gemma 3 checkpoint names -> graph weight names, of the text model and the vision tower."""

from __future__ import annotations

from typing import Any

from architectures.decoder.weight_adapters import StateDict, without_tied_head
from architectures.gemma3.weight_adapters import adapt_name as adapt_text_name
from pipelines.loading.weights import rename

VISION_PREFIXES = {
    "vision_tower.vision_model.": "vision_tower.",
    "vision_tower.": "vision_tower.",
    "model.vision_tower.": "vision_tower.",
    "multi_modal_projector.": "multi_modal_projector.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
"""Prefixes in the hub's checkpoints, in those that transformers 5 saves, and in its memory -> the graph's. The first
that matches counts."""


def adapt_vision_name(name: str) -> str | None:
    """Returns the graph's name for a checkpoint tensor, or None for one of the text model."""
    for prefix, adapted in VISION_PREFIXES.items():
        if name.startswith(prefix):
            return adapted + name.removeprefix(prefix)
    return None


def adapt(tensors: StateDict, huggingface_config: Any) -> StateDict:
    """Adapts the tensors of text model and vision tower."""
    renamed = rename(tensors, lambda name: adapt_vision_name(name) or adapt_text_name(name))
    return without_tied_head(renamed, huggingface_config)
