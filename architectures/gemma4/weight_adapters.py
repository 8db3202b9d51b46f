"""Gemma 4 checkpoint names -> graph weight names."""

from __future__ import annotations

from architectures.decoder.weight_adapters import adapt_text_name

IMAGE_AND_AUDIO_PREFIXES = ("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio.")


def adapt_name(name: str) -> str | None:
    """The graph's name for a checkpoint tensor, or None for one of the image and audio sides.

    Raises:
        KeyError: A name that no Gemma 4 checkpoint has.
    """
    return adapt_text_name(name, IMAGE_AND_AUDIO_PREFIXES)
