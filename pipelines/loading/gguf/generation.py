"""The tokens that begin, end and pad texts, and the sampling defaults, of a model in GGUF files.

Source: llama.cpp's llama-vocab.cpp, and metadata.py of the gguf package for `general.sampling`.
"""

from __future__ import annotations

from typing import Any

from pipelines.gguf_metadata import CONTROL, USER_DEFINED, Metadata, token_id_of, token_types

END_KEYS = ("eos", "eot", "eom")
END_TOKENS = (
    *("<eos>", "<end_of_turn>", "<turn|>", "<|tool_response>"),  # Gemma
    *("<|im_end|>", "<|endoftext|>"),  # Qwen
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),  # Llama 3
)
"""Tokens that end an answer wherever a vocabulary has them as control tokens: files often name only one."""
SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
"""Fields of generation_config.json, and the ends of their keys."""


def gguf_generation_config(metadata: Metadata) -> dict[str, Any]:
    """Returns what generation_config.json would say.

    Raises:
        InputError: A key is of the wrong type; the message names it.
    """
    config: dict[str, Any] = {"eos_token_id": end_token_ids(metadata)}
    for field, key in (("bos_token_id", "bos"), ("pad_token_id", "padding")):
        if (token_id := token_id_of(metadata, key)) is not None:
            config[field] = token_id
    present = {field: f"general.sampling.{key}" for field, key in SAMPLING.items()}
    sampling = {field: metadata.number(key) for field, key in present.items() if key in metadata}
    if "top_k" in sampling:
        sampling["top_k"] = metadata.count(present["top_k"])
    if "general.sampling.penalty_repeat" in metadata:
        sampling["repetition_penalty"] = metadata.number("general.sampling.penalty_repeat")
    if sampling:
        config["do_sample"] = sampling.get("temperature", 1.0) > 0
    return config | sampling


def end_token_ids(metadata: Metadata) -> list[int]:
    """Returns the tokens that end an answer: those that the file names, then the usual ones of its vocabulary."""
    named = [token_id_of(metadata, key) for key in END_KEYS]
    tokens, types = metadata.texts("tokenizer.ggml.tokens"), token_types(metadata)
    usual = set(END_TOKENS)
    known = [i for i, token in enumerate(tokens) if token in usual and types[i] in (CONTROL, USER_DEFINED)]
    return list(dict.fromkeys([token_id for token_id in (*named, *known) if token_id is not None]))
