"""Gemma 4 checkpoint names -> graph weight names."""

from __future__ import annotations

TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.")
"""What the names of the text model begin with: in multimodal checkpoints, and in text-only ones. The first that fits
counts."""

HEADS = {"lm_head.weight": "lm_head.weight", "language_model.lm_head.weight": "lm_head.weight"}

DROPPED_PREFIXES = ("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio.")
"""The image and audio sides of a multimodal checkpoint, which a text model leaves alone."""


def adapt_name(name: str) -> str | None:
    """The graph's name for a checkpoint tensor, or None for one that is dropped on purpose.

    Raises:
        KeyError: A name that no Gemma 4 checkpoint has.
    """
    if name.startswith(DROPPED_PREFIXES):
        return None
    if name in HEADS:
        return HEADS[name]
    for prefix in TEXT_PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    raise KeyError(name)
