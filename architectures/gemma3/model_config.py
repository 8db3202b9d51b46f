"""The configuration of Gemma 3 text models, 270M to 27B.

Source: transformers' configuration_gemma3.py, whose names these are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from max.nn.rotary_embedding import LinearScalingParams

from architectures.decoder.config import DecoderConfig
from architectures.layers.attention import FULL, SLIDING


@dataclass(kw_only=True)
class Gemma3Config(DecoderConfig):
    """The configuration of one Gemma 3 on the devices of one run.

    query_pre_attn_scalar: scores are multiplied by its inverse square root. The properties are MAX's (docs/contract.md)
    and follow from `layer_types` and `rope_parameters`, which the graph reads: they say more.
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

    @property
    def rope_theta(self) -> float | None:
        """Base period of RoPE in full layers; None if there are none."""
        return self._theta(FULL)

    @property
    def rope_local_base_freq(self) -> float | None:
        """Base period of RoPE in sliding layers; None if there are none."""
        return self._theta(SLIDING)

    @property
    def rope_scaling(self) -> LinearScalingParams | None:
        """Linear scaling of RoPE in full layers; None if it is not scaled.

        Raises:
            ValueError: It is scaled in another way, which `rope_parameters` has.
        """
        rope = self.rope_parameters.get(FULL)
        if rope is None or rope.rope_type == "default":
            return None
        if rope.rope_type != "linear":
            raise ValueError(f"rope_scaling is linear or None, and this model's is {rope.rope_type}")
        return LinearScalingParams(factor=float(rope.options["factor"]))

    @property
    def sliding_window_pattern(self) -> int | None:
        """The p for which layer i is full where i + 1 is a multiple of p, and sliding elsewhere.

        Of several, the smallest; None for irregular `layer_types`, which no p describes.
        """
        num_layers = len(self.layer_types)
        pattern = (*self.layer_types, FULL).index(FULL) + 1
        expected = tuple(SLIDING if (i + 1) % pattern else FULL for i in range(num_layers))
        return pattern if self.layer_types == expected else None

    @property
    def attn_logit_softcapping(self) -> None:
        """None: scores are not soft-capped, and a configuration that asks for it is refused."""
        return None

    def _theta(self, layer_type: str) -> float | None:
        rope = self.rope_parameters.get(layer_type)
        return None if rope is None else rope.theta
