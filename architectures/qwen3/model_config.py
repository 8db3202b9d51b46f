"""The configuration of Qwen 3 text models, dense (0.6B to 32B) and with experts (30B-A3B).

Source: transformers' configuration_qwen3.py and configuration_qwen3_moe.py, whose names these are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from architectures.decoder.config import DecoderConfig, Encodings
from pipelines.loading.encodings import ENCODINGS, by_device


@dataclass(frozen=True)
class Experts:
    """The mixture of experts of a sparse layer."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool


@dataclass(kw_only=True)
class Qwen3Config(DecoderConfig):
    """The configuration of one Qwen 3 on the devices of one run.

    experts: the mixture of sparse layers; None in a dense model. sparse_layers: their numbers.
    """

    encodings: ClassVar[Encodings] = by_device(ENCODINGS)

    experts: Experts | None
    sparse_layers: frozenset[int]

    @classmethod
    def own_fields(cls, text: Any) -> dict[str, Any]:
        if text.model_type != "qwen3_moe":
            return {"experts": None, "sparse_layers": frozenset()}
        experts = Experts(
            text.num_experts, text.num_experts_per_tok, text.moe_intermediate_size, bool(text.norm_topk_prob)
        )
        sparse = {
            layer
            for layer in range(text.num_hidden_layers)
            if layer not in text.mlp_only_layers and (layer + 1) % text.decoder_sparse_step == 0
        }
        return {"experts": experts, "sparse_layers": frozenset(sparse if experts.num_experts else ())}

    @property
    def feed_forward_width(self) -> int:
        """Values of a token that the feed-forward block holds at once, one row for each of its experts."""
        if self.experts is None:
            return super().feed_forward_width
        row = 2 * self.hidden_size + 3 * self.experts.moe_intermediate_size
        return max(super().feed_forward_width, self.experts.num_experts_per_tok * row)

    @property
    def split_counts(self) -> dict[str, tuple[int, bool]]:
        counts = super().split_counts
        if self.experts is not None and self.sparse_layers:
            counts["moe_intermediate_size"] = (self.experts.moe_intermediate_size, False)
        if len(self.sparse_layers) == self.num_hidden_layers:
            del counts["intermediate_size"]
        return counts
