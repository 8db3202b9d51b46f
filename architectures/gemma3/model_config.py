"""Gemma 3 text models, 270M to 27B: what the graph needs to know.

Source: transformers' configuration_gemma3.py, whose names these are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from architectures.decoder.config import DecoderConfig


@dataclass(kw_only=True)
class Gemma3Config(DecoderConfig):
    """One Gemma 3 text model on the devices of one run.

    query_pre_attn_scalar: scores are multiplied by its inverse square root.
    """

    query_pre_attn_scalar: float
    final_logit_softcapping: float | None

    @classmethod
    def own_fields(cls, text: Any) -> dict[str, Any]:
        if text.attn_logit_softcapping is not None:
            raise ValueError(f"attn_logit_softcapping {text.attn_logit_softcapping} is not supported (null is)")
        if text.use_bidirectional_attention:
            raise ValueError("use_bidirectional_attention true is not supported (false is): it is an embedding model")
        return {
            "query_pre_attn_scalar": text.query_pre_attn_scalar,
            "final_logit_softcapping": text.final_logit_softcapping,
        }
