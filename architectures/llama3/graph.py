"""Llama 3, the whole forward pass. Reference: transformers' modeling_llama.py."""

from __future__ import annotations

from architectures.decoder.graph import Outputs, embed, logits, ragged_batch, trace
from architectures.decoder.inputs import DecoderValues
from architectures.layers.attention import Attention, RaggedBatch
from architectures.layers.collectives import add, all_reduce
from architectures.layers.mlp import gated_mlp
from architectures.layers.norm import RMSNorm
from architectures.layers.weights import Replicated, WeightTable
from architectures.llama3.model_config import Llama3Config
from pipelines.loading.weight_spec import TracedGraph


def build_graph(config: Llama3Config) -> TracedGraph:
    """Builds the graph of a finalized configuration."""
    return trace("llama3", config, lambda weights, inputs: Llama3(config, weights)(inputs))


class Llama3:
    """The graph builder of one configuration."""

    def __init__(self, config: Llama3Config, weights: WeightTable) -> None:
        self.config, self.weights = config, weights
        self.norm = RMSNorm(config.rms_norm_eps)
        (group,) = config.get_kv_params().groups
        self.attention = Attention(
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            group=group,
            scale=group.head_dim**-0.5,
            bias=config.attention_bias,
        )

    def __call__(self, inputs: DecoderValues) -> Outputs:
        config = self.config
        h = embed(self.weights, config, inputs)
        batch = ragged_batch(inputs, config)
        for i in range(len(config.layer_types)):
            h = self.decoder_layer(h, i, batch)
        return logits(self.weights, config, self.norm, h, inputs, batch)

    def decoder_layer(self, h: Replicated, index: int, batch: RaggedBatch) -> Replicated:
        """Applies attention and MLP, with a norm before each: h [T, D] -> [T, D]."""
        config, weights, signals, name = self.config, self.weights, batch.signal_buffers, f"layers.{index}"
        x = self.norm(weights, h, f"{name}.input_layernorm", config.hidden_size)
        h = add(h, all_reduce(self.attention(weights, x, f"{name}.self_attn", index, batch), signals))
        x = self.norm(weights, h, f"{name}.post_attention_layernorm", config.hidden_size)
        size, activation = config.intermediate_size, config.hidden_activation
        return add(h, all_reduce(gated_mlp(weights, x, f"{name}.mlp", config.hidden_size, size, activation), signals))
