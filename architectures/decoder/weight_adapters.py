"""Weight adapters that text models share: checkpoint names -> graph weight names."""

from __future__ import annotations

from typing import Any

from max.graph.weights import WeightData

from pipelines.loading.weights import rename, same_values

TEXT_PREFIXES = ("language_model.model.", "model.language_model.", "model.")
"""Prefixes of a text model's names: in multimodal checkpoints of the hub, in those that transformers 5 saves, and in
text-only ones. The first that matches counts."""

HEADS = {"lm_head.weight": "lm_head.weight", "language_model.lm_head.weight": "lm_head.weight"}

StateDict = dict[str, WeightData]


def adapt_text_name(name: str, dropped_prefixes: tuple[str, ...] = ()) -> str | None:
    """Returns the graph's name for a checkpoint tensor, or None for one that is dropped on purpose.

    Args:
        name: The checkpoint's name.
        dropped_prefixes: Prefixes of the parts of a multimodal checkpoint that a text model does not use.

    Raises:
        KeyError: No checkpoint of the family has this name.
    """
    if name.startswith(dropped_prefixes) or name.endswith(".rotary_emb.inv_freq"):  # it follows from config.json
        return None
    if name in HEADS:
        return HEADS[name]
    for prefix in TEXT_PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    raise KeyError(name)


def adapt_text(tensors: StateDict, huggingface_config: Any) -> StateDict:
    """Adapts the checkpoint of a text-only family without names of its own."""
    return without_tied_head(rename(tensors, adapt_text_name), huggingface_config)


def without_tied_head(state_dict: StateDict, huggingface_config: Any) -> StateDict:
    """Drops a head that repeats the embedding if config.json ties them.

    As in transformers, a head that differs is used.
    """
    head, embedding = state_dict.get("lm_head.weight"), state_dict.get("embed_tokens.weight")
    is_tied = bool(huggingface_config.get_text_config().tie_word_embeddings)
    if not is_tied or head is None or embedding is None or not same_values(head, embedding):
        return state_dict
    return {name: data for name, data in state_dict.items() if name != "lm_head.weight"}
