"""Gemma 3, the whole forward pass. Reference: transformers' modeling_gemma3.py."""

from __future__ import annotations

import math

from architectures.decoder.graph import Outputs, embed, logits, ragged_batch, trace
from architectures.decoder.inputs import DecoderValues
from architectures.gemma3.model_config import Gemma3Config
from architectures.layers.attention import Attention, RaggedBatch
from architectures.layers.collectives import add, all_reduce
from architectures.layers.mlp import gated_mlp
from architectures.layers.norm import RMSNorm
from architectures.layers.weights import Replicated, WeightTable
from pipelines.loading.weight_spec import TracedGraph


def build_graph(config: Gemma3Config, bidirectional: bool = False) -> TracedGraph:
    """Builds the graph of a finalized configuration.

    Args:
        config: The configuration.
        bidirectional: Whether to build the graph for steps of images: their embeddings are an input, and their tokens
            see each other in both directions, and all text before them.
    """
    name = "gemma3_images" if bidirectional else "gemma3"
    return trace(name, config, lambda weights, inputs: Gemma3(config, weights, bidirectional)(inputs), bidirectional)


class Gemma3:
    """The graph builder of one configuration."""

    def __init__(self, config: Gemma3Config, weights: WeightTable, bidirectional: bool) -> None:
        self.config, self.weights = config, weights
        self.norm = RMSNorm(config.rms_norm_eps, weight_offset=1.0, multiply_before_cast=True)
        self.attention = {
            group.name: Attention(
                hidden_size=config.hidden_size,
                num_heads=config.num_attention_heads,
                group=group,
                scale=config.query_pre_attn_scalar**-0.5,
                bias=config.attention_bias,
                qk_norm=self.norm,
                bidirectional=bidirectional,
            )
            for group in config.get_kv_params().groups
        }

    def __call__(self, inputs: DecoderValues) -> Outputs:
        config = self.config
        h = embed(self.weights, config, inputs, scale=math.sqrt(config.hidden_size))
        batch = ragged_batch(inputs, config)
        for i, layer_type in enumerate(config.layer_types):
            h = self.decoder_layer(h, f"layers.{i}", layer_type, config.layer_types[:i].count(layer_type), batch)
        return logits(self.weights, config, self.norm, h, inputs, batch, config.final_logit_softcapping)

    def decoder_layer(self, h: Replicated, name: str, layer_type: str, index: int, batch: RaggedBatch) -> Replicated:
        """Applies attention and MLP, with a norm before and after each: h [T, D] -> [T, D].

        `index` is the layer's place among those of its type.
        """
        config, weights, signals = self.config, self.weights, batch.signal_buffers
        x = self.normalize(h, f"{name}.input_layernorm")
        x = all_reduce(self.attention[layer_type](weights, x, f"{name}.self_attn", index, batch), signals)
        h = add(h, self.normalize(x, f"{name}.post_attention_layernorm"))
        x = self.normalize(h, f"{name}.pre_feedforward_layernorm")
        size, activation = config.intermediate_size, config.hidden_activation
        x = all_reduce(gated_mlp(weights, x, f"{name}.mlp", config.hidden_size, size, activation), signals)
        return add(h, self.normalize(x, f"{name}.post_feedforward_layernorm"))

    def normalize(self, x: Replicated, name: str) -> Replicated:
        """Normalizes each row of x [T, D] with the weight `name`.weight."""
        return self.norm(self.weights, x, name, self.config.hidden_size)
