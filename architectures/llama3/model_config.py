"""The configuration of Llama 3.1 and 3.2 text models.

Source: transformers' configuration_llama.py, whose names these are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from architectures.decoder.config import DecoderConfig


@dataclass(kw_only=True)
class Llama3Config(DecoderConfig):
    """The configuration of one Llama 3 on the devices of one run."""

    @classmethod
    def own_fields(cls, text: Any) -> dict[str, Any]:
        if text.mlp_bias:
            raise ValueError("mlp_bias true is not supported (false is)")
        return {}
