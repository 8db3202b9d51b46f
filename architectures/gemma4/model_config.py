"""Gemma 4 text models, E2B, E4B and the dense 31B: what the graph needs to know.

Source: transformers' configuration_gemma4.py, whose names these are.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from max.dtype import DType
from max.graph.weights import WeightData

from architectures.decoder.config import DecoderConfig
from architectures.layers.attention import FULL

PER_LAYER_TABLE = "embed_tokens_per_layer.weight"


@dataclass(kw_only=True)
class Gemma4Config(DecoderConfig):
    """One Gemma 4 text model on the devices of one run.

    num_kv_shared_layers: how many of the last layers have no keys and values of their own; they read those of the last
    layer of their type that has. use_double_wide_mlp: whether their feed-forward blocks are twice as wide.
    attention_k_eq_v: whether values are the keys before norm and RoPE, in full layers.
    hidden_size_per_layer_input: the width of each layer's own embedding; 0: there are none.
    per_layer_dtype: what their table is stored in; None until `finalize`.
    """

    num_kv_shared_layers: int
    use_double_wide_mlp: bool
    attention_k_eq_v: bool
    hidden_size_per_layer_input: int
    vocab_size_per_layer_input: int
    final_logit_softcapping: float | None
    per_layer_dtype: DType | None = None

    @classmethod
    def heads_of(cls, text: Any, kind: str) -> tuple[int, int]:
        if (layers := getattr(text, "per_layer_config", None)) is not None:  # transformers 5.20 and later
            layer = layers[text.layer_types.index(kind)]
            return layer.num_key_value_heads, layer.head_dim
        if kind != FULL:
            return text.num_key_value_heads, text.head_dim
        own = text.num_global_key_value_heads if text.attention_k_eq_v else None
        return own or text.num_key_value_heads, text.global_head_dim

    @classmethod
    def own_fields(cls, text: Any) -> dict[str, Any]:
        if text.enable_moe_block:
            raise ValueError("enable_moe_block true (a mixture of experts) is not supported for Gemma 4 (false is)")
        if text.use_bidirectional_attention == "all":
            raise ValueError("use_bidirectional_attention 'all' is not supported (null and 'vision' are)")
        return {
            "num_kv_shared_layers": text.num_kv_shared_layers,
            "use_double_wide_mlp": text.use_double_wide_mlp,
            "attention_k_eq_v": text.attention_k_eq_v,
            "hidden_size_per_layer_input": text.hidden_size_per_layer_input,
            "vocab_size_per_layer_input": text.vocab_size_per_layer_input,
            "final_logit_softcapping": text.final_logit_softcapping,
        }

    def refuse_what_is_not_built(self) -> None:
        super().refuse_what_is_not_built()
        if lacking := set(self.layer_types) - set(self.cached_layer_types):
            shared = self.num_kv_shared_layers
            raise ValueError(f"num_kv_shared_layers {shared} leaves no {lacking.pop()} layer with keys and values")

    @property
    def cached_layer_types(self) -> tuple[str, ...]:
        return self.layer_types[: len(self.layer_types) - self.num_kv_shared_layers]

    def read_weights(self, state_dict: MutableMapping[str, WeightData]) -> None:
        """What checkpoints store for layers that share keys and values is never read."""
        for layer in range(len(self.cached_layer_types), len(self.layer_types)):
            for name in ("k_proj", "v_proj", "k_norm", "v_norm"):
                state_dict.pop(f"layers.{layer}.self_attn.{name}.weight", None)
        table = state_dict.get(PER_LAYER_TABLE)
        self.per_layer_dtype = None if table is None else table.dtype
