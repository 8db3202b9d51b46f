"""Checkpoint names -> graph weight names, for what text models have in common."""

from __future__ import annotations

TEXT_PREFIXES = ("language_model.model.", "model.language_model.", "model.")
"""What the names of a text model begin with: in multimodal checkpoints of the hub, in those that transformers 5 saves,
and in text-only ones. The first that fits counts."""

HEADS = {"lm_head.weight": "lm_head.weight", "language_model.lm_head.weight": "lm_head.weight"}


def adapt_text_name(name: str, dropped_prefixes: tuple[str, ...] = ()) -> str | None:
    """The graph's name for a checkpoint tensor, or None for one that is dropped on purpose.

    dropped_prefixes: of the sides of a multimodal checkpoint that a text model leaves alone.

    Raises:
        KeyError: A name that no checkpoint of the family has.
    """
    if name.startswith(dropped_prefixes) or name.endswith(".rotary_emb.inv_freq"):  # which config.json tells
        return None
    if name in HEADS:
        return HEADS[name]
    for prefix in TEXT_PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    raise KeyError(name)
