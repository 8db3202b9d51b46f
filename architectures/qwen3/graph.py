"""Qwen 3, the whole forward pass. Reference: transformers' modeling_qwen3.py and modeling_qwen3_moe.py."""

from __future__ import annotations

from architectures.decoder.graph import Outputs, embed, logits, ragged_batch, trace
from architectures.decoder.inputs import DecoderValues
from architectures.layers.attention import Attention, RaggedBatch
from architectures.layers.collectives import add, all_reduce
from architectures.layers.mlp import gated_mlp
from architectures.layers.moe import MixtureOfExperts
from architectures.layers.norm import RMSNorm
from architectures.layers.weights import Partial, Replicated, WeightTable
from architectures.qwen3.model_config import Qwen3Config
from pipelines.loading.weight_spec import TracedGraph


def build_graph(config: Qwen3Config) -> TracedGraph:
    """Builds the graph of a finalized configuration."""
    return trace("qwen3", config, lambda weights, inputs: Qwen3(config, weights)(inputs))


class Qwen3:
    """The graph builder of one configuration."""

    def __init__(self, config: Qwen3Config, weights: WeightTable) -> None:
        self.config, self.weights = config, weights
        self.norm = RMSNorm(config.rms_norm_eps)
        self.attention = {
            group.name: Attention(
                hidden_size=config.hidden_size,
                num_heads=config.num_attention_heads,
                group=group,
                scale=group.head_dim**-0.5,
                bias=config.attention_bias,
                qk_norm=self.norm,
            )
            for group in config.get_kv_params().groups
        }

    def __call__(self, inputs: DecoderValues) -> Outputs:
        config = self.config
        h = embed(self.weights, config, inputs)
        batch = ragged_batch(inputs, config)
        for i in range(len(config.layer_types)):
            h = self.decoder_layer(h, i, batch)
        return logits(self.weights, config, self.norm, h, inputs, batch)

    def decoder_layer(self, h: Replicated, layer: int, batch: RaggedBatch) -> Replicated:
        """Applies attention and MLP, with a norm before each: h [T, D] -> [T, D]."""
        config, weights, signals, name = self.config, self.weights, batch.signal_buffers, f"layers.{layer}"
        layer_type = config.layer_types[layer]
        attention, index = self.attention[layer_type], config.layer_types[:layer].count(layer_type)
        x = self.norm(weights, h, f"{name}.input_layernorm", config.hidden_size)
        h = add(h, all_reduce(attention(weights, x, f"{name}.self_attn", index, batch), signals))
        x = self.norm(weights, h, f"{name}.post_attention_layernorm", config.hidden_size)
        return add(h, all_reduce(self.feed_forward(x, f"{name}.mlp", layer), signals))

    def feed_forward(self, x: Replicated, name: str, layer: int) -> Partial:
        """Applies the MLP, or in a sparse layer the mixture of experts: [T, D], to be summed over the devices."""
        config = self.config
        if config.experts is None or layer not in config.sparse_layers:
            size, activation = config.intermediate_size, config.hidden_activation
            return gated_mlp(self.weights, x, name, config.hidden_size, size, activation)
        experts = MixtureOfExperts(
            hidden_size=config.hidden_size,
            size=config.experts.moe_intermediate_size,
            num_experts=config.experts.num_experts,
            num_experts_per_tok=config.experts.num_experts_per_tok,
            norm_topk_prob=config.experts.norm_topk_prob,
            activation=config.hidden_activation,
        )
        return experts(self.weights, x, name)
