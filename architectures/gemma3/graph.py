"""Gemma 3, the whole forward pass. Reference: transformers' modeling_gemma3.py."""

from __future__ import annotations

import math

from max.dtype import DType
from max.graph import Graph, TensorValue, ops

from architectures.gemma3.model_config import FULL, SLIDING, Gemma3Config
from architectures.layers.attention import Attention, Rows
from architectures.layers.collectives import all_reduce, broadcast
from architectures.layers.kernels import extensions
from architectures.layers.linear import matmul
from architectures.layers.logits import last_of_each_row, select_positions
from architectures.layers.mlp import gated_mlp
from architectures.layers.norm import RMSNorm
from architectures.layers.weights import Shards, WeightTable
from pipelines.decoder_inputs import DecoderValues, decoder_input_types, graph_values
from pipelines.pipeline_model import TracedGraph


def build_graph(config: Gemma3Config) -> TracedGraph:
    """Traces the model: no weights are read, no device is opened, nothing is compiled.

    Raises:
        ValueError: The configuration is not finalized.
    """
    if config.return_logits is None or config.tie_word_embeddings is None:
        raise ValueError("finalize the configuration before building a graph: only the weights tell the rest")
    types = decoder_input_types(config.get_kv_params(), config.devices, config.rope_dims)
    with Graph("gemma3", input_types=types.flatten(), custom_extensions=extensions(config.devices)) as graph:
        model = Gemma3(config)
        graph.output(*model(graph_values(types, graph)))
    return TracedGraph(graph, model.weights.specs)


class Gemma3:
    """The graph builder of one configuration."""

    def __init__(self, config: Gemma3Config) -> None:
        self.config = config
        self.weights = WeightTable(config.dtype, config.devices)
        self.norm = RMSNorm(config.rms_norm_eps, weight_offset=1.0, multiply_before_cast=True)
        self.attention = {
            group.name: Attention(
                hidden_size=config.hidden_size,
                num_heads=config.num_attention_heads,
                group=group,
                rope=group.name,
                scale=config.query_pre_attn_scalar**-0.5,
                bias=config.attention_bias,
                qk_norm=self.norm,
            )
            for group in config.get_kv_params().groups
        }

    def __call__(self, inputs: DecoderValues) -> tuple[TensorValue, ...]:
        """logits [M, V], next_token_logits [B, V], logit_offsets [B + 1], next_tokens [B]."""
        config = self.config
        embedding = self.weights.first("embed_tokens.weight", [config.vocab_size, config.hidden_size])
        scale = ops.constant(math.sqrt(config.hidden_size), config.dtype, embedding.device)
        h = broadcast(ops.gather(embedding, inputs.tokens, axis=0) * scale, config.devices)
        rows = Rows.of(inputs, config.devices)
        index_in_group = {SLIDING: 0, FULL: 0}
        for i, kind in enumerate(config.layer_types):
            h = self.decoder_layer(h, f"layers.{i}", kind, index_in_group[kind], rows)
            index_in_group[kind] += 1
        return self.logits(h, embedding, inputs)

    def decoder_layer(self, h: Shards, name: str, kind: str, index: int, rows: Rows) -> Shards:
        """h [T, D] -> [T, D], with a norm before and after each half."""
        config, weights, signals = self.config, self.weights, rows.signal_buffers
        x = self.normalize(h, f"{name}.input_layernorm")
        x = all_reduce(self.attention[kind](weights, x, f"{name}.self_attn", index, rows), signals)
        h = add(h, self.normalize(x, f"{name}.post_attention_layernorm"))
        x = self.normalize(h, f"{name}.pre_feedforward_layernorm")
        size, activation = config.intermediate_size, config.hidden_activation
        x = all_reduce(gated_mlp(weights, x, f"{name}.mlp", config.hidden_size, size, activation), signals)
        return add(h, self.normalize(x, f"{name}.post_feedforward_layernorm"))

    def normalize(self, x: Shards, name: str) -> Shards:
        return self.norm(self.weights, x, name, self.config.hidden_size)

    def logits(self, h: Shards, embedding: TensorValue, inputs: DecoderValues) -> tuple[TensorValue, ...]:
        """The head, on the first device, for the positions that are wanted."""
        config = self.config
        assert config.return_logits is not None
        h_MD, offsets = select_positions(h[0], inputs.input_row_offsets, inputs.return_n_logits, config.return_logits)
        scale = self.weights.first("norm.weight", [config.hidden_size])
        head = embedding
        if not config.tie_word_embeddings:
            head = self.weights.first("lm_head.weight", [config.vocab_size, config.hidden_size])
        logits_MV = ops.cast(matmul(self.norm.apply(h_MD, scale), head), DType.float32)
        if config.final_logit_softcapping is not None:
            logits_MV = ops.tanh(logits_MV / config.final_logit_softcapping) * config.final_logit_softcapping
        next_BV = last_of_each_row(logits_MV, offsets)
        return logits_MV, next_BV, offsets, ops.argmax(next_BV, axis=-1).reshape((-1,))


def add(x: Shards, y: Shards) -> Shards:
    return [a + b for a, b in zip(x, y, strict=True)]
