"""Gemma 3 checkpoint names -> weight names of the image side's graph."""

from __future__ import annotations

PREFIXES = {
    "vision_tower.vision_model.": "vision_tower.",
    "vision_tower.": "vision_tower.",
    "model.vision_tower.": "vision_tower.",
    "multi_modal_projector.": "multi_modal_projector.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
"""Of the hub's checkpoints, of those that transformers 5 saves, and as it names them in memory. The first that fits
counts."""


def adapt_vision_name(name: str) -> str | None:
    """The graph's name for a checkpoint tensor, or None for one of the text model."""
    for prefix, adapted in PREFIXES.items():
        if name.startswith(prefix):
            return adapted + name.removeprefix(prefix)
    return None
