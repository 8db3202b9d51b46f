"""Gemma 3 checkpoint names -> graph weight names, of text and images."""

from __future__ import annotations

from architectures.gemma3.weight_adapters import adapt_name as adapt_text_name
from architectures.gemma3_multimodal.vision_weight_names import adapt_vision_name


def adapt_name(name: str) -> str | None:
    """The graphs' name for a checkpoint tensor.

    Raises:
        KeyError: A name that no Gemma 3 checkpoint has.
    """
    return adapt_vision_name(name) or adapt_text_name(name)
