"""Gemma 3 checkpoint names -> graph weight names."""

from __future__ import annotations

TEXT_PREFIXES = ("language_model.model.", "model.language_model.", "model.")
"""What the names of the text model begin with: multimodal checkpoints of the hub, those that transformers 5 saves,
and text-only ones. The first that fits counts."""

HEADS = {"lm_head.weight": "lm_head.weight", "language_model.lm_head.weight": "lm_head.weight"}

DROPPED_PREFIXES = (
    "vision_tower.",
    "model.vision_tower.",
    "multi_modal_projector.",
    "model.multi_modal_projector.",
)
"""The image side of a multimodal checkpoint, which a text model leaves alone."""


def adapt_name(name: str) -> str | None:
    """The graph's name for a checkpoint tensor, or None for one that is dropped on purpose.

    Raises:
        KeyError: A name that no Gemma 3 checkpoint has.
    """
    if name.startswith(DROPPED_PREFIXES):
        return None
    if name in HEADS:
        return HEADS[name]
    for prefix in TEXT_PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    raise KeyError(name)
