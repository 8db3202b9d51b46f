"""The ends of every decoder: from tokens to the first hidden state, from the last one to logits."""

from __future__ import annotations

from collections.abc import Callable

from max.dtype import DType
from max.graph import Graph, TensorValue, ops

from architectures.decoder.config import DecoderConfig
from architectures.decoder.inputs import (
    DecoderValues,
    ImageInputs,
    decoder_input_types,
    graph_values,
    image_input_types,
)
from architectures.layers.collectives import broadcast
from architectures.layers.kernels import extensions
from architectures.layers.linear import matmul
from architectures.layers.logits import last_of_each_row, select_positions
from architectures.layers.norm import RMSNorm
from architectures.layers.weights import Shards, WeightTable
from pipelines.pipeline_model import TracedGraph

Outputs = tuple[TensorValue, ...]
"""logits [M, V], next_token_logits [B, V], logit_offsets [B + 1], next_tokens [B]."""


def trace(
    name: str,
    config: DecoderConfig,
    forward: Callable[[WeightTable, DecoderValues], Outputs],
    takes_embeddings: bool = False,
) -> TracedGraph:
    """A decoder's graph: no weights are read, no device is opened, nothing is compiled.

    takes_embeddings: whether the inputs are `ImageInputs`.

    Raises:
        ValueError: The configuration is not finalized.
    """
    if config.return_logits is None or config.tie_word_embeddings is None:
        raise ValueError("finalize the configuration before building a graph: only the weights tell the rest")
    types = decoder_input_types(config.get_kv_params(), config.devices, config.rope_dims)
    if takes_embeddings:
        types = image_input_types(types, config.hidden_size)
    weights = WeightTable(config.dtype, config.matrix_dtype, config.devices, config.float8, config.native_float8)
    with Graph(name, input_types=types.flatten(), custom_extensions=extensions(config.devices)) as graph:
        graph.output(*forward(weights, graph_values(types, graph)))
    return TracedGraph(graph, weights.specs)


def embed(weights: WeightTable, config: DecoderConfig, inputs: DecoderValues, scale: float | None = None) -> Shards:
    """The tokens' rows of the embedding, times `scale` if there is one: [T, D] on every device.

    In a step whose rows are images, what the vision tower made of these.
    """
    if isinstance(inputs, ImageInputs):
        return broadcast(ops.cast(inputs.embeddings, config.dtype), config.devices)
    embedding = weights.first("embed_tokens.weight", [config.vocab_size, config.hidden_size])
    h_TD = ops.cast(ops.gather(embedding, inputs.tokens, axis=0), config.dtype)
    if scale is not None:
        h_TD = h_TD * ops.constant(scale, config.dtype, h_TD.device)
    return broadcast(h_TD, config.devices)


def logits(
    weights: WeightTable,
    config: DecoderConfig,
    norm: RMSNorm,
    h: Shards,
    inputs: DecoderValues,
    softcapping: float | None = None,
) -> Outputs:
    """The last norm and the head, on the first device, for the positions that are wanted."""
    assert config.return_logits is not None
    h_MD, offsets = select_positions(h[0], inputs.input_row_offsets, inputs.return_n_logits, config.return_logits)
    scale = weights.first("norm.weight", [config.hidden_size])
    head = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    head_VD = weights.first(head, [config.vocab_size, config.hidden_size])
    logits_MV = ops.cast(matmul(norm.apply(h_MD, scale), head_VD), DType.float32)
    if softcapping is not None:
        logits_MV = ops.tanh(logits_MV / softcapping) * softcapping
    next_BV = last_of_each_row(logits_MV, offsets)
    return logits_MV, next_BV, offsets, ops.argmax(next_BV, axis=-1).reshape((-1,))


def add(x: Shards, y: Shards) -> Shards:
    """The sums, device by device."""
    return [a + b for a, b in zip(x, y, strict=True)]
