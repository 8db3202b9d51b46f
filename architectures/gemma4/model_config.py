"""The configuration of Gemma 4 text models: E2B, E4B and the dense 31B.

Source: transformers' configuration_gemma4.py, whose names these are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from architectures.decoder.config import DecoderConfig
from architectures.layers.attention import FULL

PER_LAYER_TABLE = "embed_tokens_per_layer.weight"


@dataclass(kw_only=True)
class Gemma4Config(DecoderConfig):
    """The configuration of one Gemma 4 text model on the devices of one run.

    global_head_dim, num_global_key_value_heads: of full layers; head_dim and num_key_value_heads are those of sliding
    layers. num_kv_shared_layers: the number of last layers without keys and values of their own (KV sharing); they read
    those of the last layer of their type that has. use_double_wide_mlp: whether their feed-forward blocks are twice as
    wide. attention_k_eq_v: whether values are the keys before norm and RoPE, in full layers.
    hidden_size_per_layer_input: the width of per-layer embeddings (PLE); 0: there are none. tables_on_device: whether
    their rows are read on the first device.
    """

    global_head_dim: int
    num_global_key_value_heads: int
    num_kv_shared_layers: int
    use_double_wide_mlp: bool
    attention_k_eq_v: bool
    hidden_size_per_layer_input: int
    vocab_size_per_layer_input: int
    final_logit_softcapping: float | None
    tables_on_device: bool = False

    @classmethod
    def heads_of(cls, text: Any, layer_type: str) -> tuple[int, int]:
        if (layers := getattr(text, "per_layer_config", None)) is not None:  # transformers 5.20 and later
            layer = layers[text.layer_types.index(layer_type)]
            return layer.num_key_value_heads, layer.head_dim
        if layer_type != FULL:
            return text.num_key_value_heads, text.head_dim
        own = text.num_global_key_value_heads if text.attention_k_eq_v else None
        return own or text.num_key_value_heads, text.global_head_dim

    @classmethod
    def own_fields(cls, text: Any) -> dict[str, Any]:
        if text.enable_moe_block:
            raise ValueError("enable_moe_block true (a mixture of experts) is not supported for Gemma 4 (false is)")
        if text.use_bidirectional_attention == "all":
            raise ValueError("use_bidirectional_attention 'all' is not supported (null and 'vision' are)")
        num_global_heads, global_head_dim = cls.heads_of(text, FULL)
        return {
            "num_global_key_value_heads": num_global_heads,
            "global_head_dim": global_head_dim,
            "num_kv_shared_layers": text.num_kv_shared_layers,
            "use_double_wide_mlp": text.use_double_wide_mlp,
            "attention_k_eq_v": text.attention_k_eq_v,
            "hidden_size_per_layer_input": text.hidden_size_per_layer_input,
            "vocab_size_per_layer_input": text.vocab_size_per_layer_input,
            "final_logit_softcapping": text.final_logit_softcapping,
        }

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if lacking := set(self.layer_types) - set(self.cached_layer_types):
            shared = self.num_kv_shared_layers
            raise ValueError(f"num_kv_shared_layers {shared} leaves no {lacking.pop()} layer with keys and values")

    def kv_heads(self, layer_type: str) -> tuple[int, int]:
        if layer_type == FULL:
            return self.num_global_key_value_heads, self.global_head_dim
        return super().kv_heads(layer_type)

    @property
    def feed_forward_width(self) -> int:
        """Values of a token that the widest feed-forward block holds at once."""
        return super().feed_forward_width * (2 if self.use_double_wide_mlp else 1)

    @property
    def per_token_input_width(self) -> int:
        """Per-layer embeddings of a token: their rows, the projection, and the sum."""
        return 3 * len(self.layer_types) * self.hidden_size_per_layer_input

    @property
    def split_counts(self) -> dict[str, tuple[int, bool]]:
        return super().split_counts | {"num_global_key_value_heads": (self.num_global_key_value_heads, True)}

    @property
    def cached_layer_types(self) -> tuple[str, ...]:
        return self.layer_types[: len(self.layer_types) - self.num_kv_shared_layers]
