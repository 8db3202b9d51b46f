"""Gemma 3 checkpoint names -> graph weight names."""

from __future__ import annotations

from architectures.decoder.weight_adapters import adapt_text_name

IMAGE_PREFIXES = (
    "vision_tower.",
    "model.vision_tower.",
    "multi_modal_projector.",
    "model.multi_modal_projector.",
)


def adapt_name(name: str) -> str | None:
    """The graph's name for a checkpoint tensor, or None for one of the image side.

    Raises:
        KeyError: A name that no Gemma 3 checkpoint has.
    """
    return adapt_text_name(name, IMAGE_PREFIXES)
