"""Checkpoint names -> graph weight names, for what text models have in common."""

from __future__ import annotations


def adapt_text_name(name: str) -> str | None:
    """The graph's name for a tensor of a text-only checkpoint, or None for one that is dropped on purpose.

    Raises:
        KeyError: A name that no such checkpoint has.
    """
    if name.endswith(".rotary_emb.inv_freq"):  # old checkpoints store what config.json tells
        return None
    if name == "lm_head.weight":
        return name
    if name.startswith("model."):
        return name.removeprefix("model.")
    raise KeyError(name)
