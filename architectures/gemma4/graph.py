"""Gemma 4 text, the whole forward pass. Reference: transformers' modeling_gemma4.py.

Shape suffixes: P width of a per-layer embedding, L layers.
"""

from __future__ import annotations

import math

from max.graph import DeviceRef, TensorValue, ops

from architectures.decoder.graph import Outputs, embed, logits, ragged_batch, trace
from architectures.decoder.inputs import DecoderValues
from architectures.gemma4.model_config import PER_LAYER_TABLE, Gemma4Config
from architectures.layers.activations import ACTIVATIONS
from architectures.layers.attention import FULL, Attention, RaggedBatch
from architectures.layers.collectives import add, all_reduce, broadcast
from architectures.layers.linear import matmul
from architectures.layers.mlp import gated_mlp
from architectures.layers.norm import RMSNorm
from architectures.layers.weights import Replicated, WeightTable
from pipelines.loading.weight_spec import TracedGraph


def build_graph(config: Gemma4Config) -> TracedGraph:
    """Builds the graph of a finalized configuration."""
    return trace("gemma4", config, lambda weights, inputs: Gemma4(config, weights)(inputs))


class Gemma4:
    """The graph builder of one configuration."""

    def __init__(self, config: Gemma4Config, weights: WeightTable) -> None:
        self.config, self.weights = config, weights
        self.norm = RMSNorm(config.rms_norm_eps, multiply_before_cast=True)
        self.attention = {
            group.name: Attention(
                hidden_size=config.hidden_size,
                num_heads=config.num_attention_heads,
                group=group,
                scale=1.0,
                bias=config.attention_bias,
                qk_norm=self.norm,
                normalizes_values=True,
                has_values=not (config.attention_k_eq_v and group.name == FULL),
            )
            for group in config.get_kv_params().groups
        }

    def __call__(self, inputs: DecoderValues) -> Outputs:
        config = self.config
        h = embed(self.weights, config, inputs, scale=math.sqrt(config.hidden_size))
        per_layer = self.per_layer_inputs(inputs.tokens, h[0]) if config.hidden_size_per_layer_input else None
        batch = ragged_batch(inputs, config)
        for i in range(len(config.layer_types)):
            h = self.decoder_layer(h, i, batch)
            if per_layer is not None:
                h = self.add_per_layer_input(h, f"layers.{i}", Replicated([shard[:, i] for shard in per_layer]))
            scalar = self.weights.replicated(f"layers.{i}.layer_scalar", [1])
            h = Replicated([x * s for x, s in zip(h, scalar, strict=True)])
        return logits(self.weights, config, self.norm, h, inputs, batch, config.final_logit_softcapping)

    def per_layer_inputs(self, tokens: TensorValue, h_TD: TensorValue) -> Replicated:
        """Per-layer embeddings (PLE) [T, L, P] of each token: its row of the table, plus a projection of its embedding.

        The table is larger than all the rest of a small model: it stays in the mapped file, and rows are looked up,
        unless the device has room for it (`config.tables_on_device`).
        """
        config, num_layers, size = self.config, len(self.config.layer_types), self.config.hidden_size_per_layer_input
        shape, on_device = (config.vocab_size_per_layer_input, num_layers * size), config.tables_on_device
        table = self.weights.lookup_table(PER_LAYER_TABLE, shape, on_device)
        rows = table.encoding.gather(table, tokens if on_device else tokens.to(DeviceRef.CPU())).to(h_TD.device)
        rows_TLP = ops.cast(rows, config.dtype).reshape((-1, num_layers, size)) * math.sqrt(size)
        projection = self.weights.matrix_on_first_device(
            "per_layer_model_projection.weight", (num_layers * size, config.hidden_size)
        )
        projected = matmul(h_TD, projection) * config.hidden_size**-0.5
        scale = self.weights.on_first_device("per_layer_projection_norm.weight", [size])
        projected_TLP = self.norm.apply(projected.reshape((-1, num_layers, size)), scale)
        return broadcast((projected_TLP + rows_TLP) * math.sqrt(0.5), config.devices)

    def decoder_layer(self, h: Replicated, layer: int, batch: RaggedBatch) -> Replicated:
        """Applies attention and MLP, with a norm before and after each: h [T, D] -> [T, D].

        The last layers share keys and values with the last layer of their type before them (KV sharing).
        """
        config, weights, signals, name = self.config, self.weights, batch.signal_buffers, f"layers.{layer}"
        layer_type, cached = config.layer_types[layer], config.cached_layer_types
        is_shared = layer >= len(cached)
        index = cached.count(layer_type) - 1 if is_shared else cached[:layer].count(layer_type)
        x = self.normalize(h, f"{name}.input_layernorm")
        attended = self.attention[layer_type](weights, x, f"{name}.self_attn", index, batch, stores=not is_shared)
        h = add(h, self.normalize(all_reduce(attended, signals), f"{name}.post_attention_layernorm"))
        x = self.normalize(h, f"{name}.pre_feedforward_layernorm")
        size = config.intermediate_size * (2 if is_shared and config.use_double_wide_mlp else 1)
        parts = gated_mlp(weights, x, f"{name}.mlp", config.hidden_size, size, config.hidden_activation)
        return add(h, self.normalize(all_reduce(parts, signals), f"{name}.post_feedforward_layernorm"))

    def add_per_layer_input(self, h: Replicated, name: str, inputs: Replicated) -> Replicated:
        """Adds the layer's embedding of each token, gated by the hidden state and projected: [T, P] -> [T, D]."""
        config, size = self.config, self.config.hidden_size_per_layer_input
        gates = self.weights.replicated_matrices(f"{name}.per_layer_input_gate.weight", (size, config.hidden_size))
        projections = self.weights.replicated_matrices(
            f"{name}.per_layer_projection.weight", (config.hidden_size, size)
        )
        activation = ACTIVATIONS[config.hidden_activation]
        x = [
            matmul(activation(matmul(shard, gate)) * own, projection)
            for shard, gate, own, projection in zip(h, gates, inputs, projections, strict=True)
        ]
        return add(h, self.normalize(Replicated(x), f"{name}.post_per_layer_input_norm"))

    def normalize(self, x: Replicated, name: str) -> Replicated:
        """Normalizes each row of x [T, D] with the weight `name`.weight."""
        return self.norm(self.weights, x, name, self.config.hidden_size)
