"""The ends of every decoder graph: from tokens to the first hidden state, from the last one to logits."""

from __future__ import annotations

from collections.abc import Callable

from max.dtype import DType
from max.graph import Graph, TensorValue, ops

from architectures.decoder.config import DecoderConfig
from architectures.decoder.inputs import DecoderValues, decoder_input_types, graph_values
from architectures.layers.activations import soft_cap
from architectures.layers.attention import RaggedBatch
from architectures.layers.collectives import broadcast
from architectures.layers.kernels import extensions
from architectures.layers.linear import matmul
from architectures.layers.logits import greedy_choice, last_of_each_row, select_positions
from architectures.layers.norm import RMSNorm
from architectures.layers.weights import Replicated, WeightTable
from pipelines.loading.encoding import Matrix
from pipelines.loading.weight_spec import TracedGraph

Outputs = tuple[TensorValue, ...]
"""Fields of ModelOutputs: logits [M, V], next_token_logits [B, V], logit_offsets [B + 1], greedy_tokens [M], ..."""


def trace(
    name: str,
    config: DecoderConfig,
    forward: Callable[[WeightTable, DecoderValues], Outputs],
    has_embeddings: bool = False,
) -> TracedGraph:
    """Traces a decoder's graph: no weights are read, no device is opened, nothing is compiled.

    Args:
        name: Name of the graph.
        config: A finalized configuration.
        forward: The forward pass, which declares its weights.
        has_embeddings: Whether the tokens' embeddings are an input, as in steps of images.

    Raises:
        ValueError: The configuration is not finalized.
    """
    if not config.is_finalized:
        raise ValueError("finalize the configuration before building a graph: only the weights tell the rest")
    embeddings = (config.dtype, config.hidden_size) if has_embeddings else None
    types = decoder_input_types(config.get_kv_params(), config.devices, config.rope_dims, embeddings)
    weights = WeightTable(config.dtype, config.encoding, config.devices, config.stored, config.quant_config)
    with Graph(name, input_types=types.flatten(), custom_extensions=extensions(config.devices)) as graph:
        graph.output(*forward(weights, graph_values(types, graph)))
    return TracedGraph(graph, weights.specs)


def ragged_batch(inputs: DecoderValues, config: DecoderConfig) -> RaggedBatch:
    """Copies the rows of a step to every device."""
    assert inputs.position_ids is not None and inputs.freqs_cis is not None and inputs.kv_cache_inputs is not None
    return RaggedBatch(
        row_offsets=broadcast(inputs.input_row_offsets, config.devices),
        position_ids=broadcast(inputs.position_ids, config.devices),
        freqs_cis=inputs.freqs_cis,
        pages=inputs.kv_cache_inputs,
        signal_buffers=inputs.signal_buffers,
    )


def embed(weights: WeightTable, config: DecoderConfig, inputs: DecoderValues, scale: float | None = None) -> Replicated:
    """Looks up the tokens' embeddings, times `scale` if there is one: [T, D] on every device.

    In a step of images the embeddings are an input, which is returned unscaled.
    """
    if inputs.embeddings is not None:
        return broadcast(inputs.embeddings, config.devices)
    embedding = _vocabulary_matrix(weights, config, "embed_tokens.weight")
    h_TD = ops.cast(embedding.encoding.gather(embedding, inputs.tokens), config.dtype)
    if scale is not None:
        h_TD = h_TD * ops.constant(scale, config.dtype, h_TD.device)
    return broadcast(h_TD, config.devices)


def logits(
    weights: WeightTable,
    config: DecoderConfig,
    norm: RMSNorm,
    h: Replicated,
    inputs: DecoderValues,
    softcapping: float | None = None,
) -> Outputs:
    """Applies the last norm and the head, on the first device, to the positions whose logits are returned.

    Args:
        weights: The weights of the graph.
        config: The configuration.
        norm: The family's norm.
        h: [T, D], after the last layer.
        inputs: The inputs of the graph.
        softcapping: Bound of the soft-capping of logits, if there is one.
    """
    h_MD, offsets = select_positions(h[0], inputs.input_row_offsets, inputs.return_n_logits, config.return_logits)
    scale = weights.on_first_device("norm.weight", [config.hidden_size])
    name = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    head = _vocabulary_matrix(weights, config, name)
    logits_MV = ops.cast(matmul(norm.apply(h_MD, scale), head), DType.float32)
    if softcapping is not None:
        logits_MV = soft_cap(logits_MV, softcapping)
    return logits_MV, last_of_each_row(logits_MV, offsets), offsets, *greedy_choice(logits_MV)


def _vocabulary_matrix(weights: WeightTable, config: DecoderConfig, name: str) -> Matrix:
    """Declares the embedding or the head, [V, D]."""
    return weights.matrix_on_first_device(name, (config.vocab_size, config.hidden_size), config.head_encoding)
