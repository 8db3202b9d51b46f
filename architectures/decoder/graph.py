"""The ends of every decoder graph: from tokens to the first hidden state, from the last one to logits."""

from __future__ import annotations

from collections.abc import Callable

from max.dtype import DType
from max.graph import Graph, TensorValue, ops

from architectures.decoder.config import DecoderConfig
from architectures.decoder.inputs import DecoderValues, decoder_input_types, graph_values
from architectures.layers.activations import soft_cap
from architectures.layers.attention import RaggedBatch
from architectures.layers.collectives import all_reduce, broadcast
from architectures.layers.kernels import extensions
from architectures.layers.logits import greedy_choice, last_of_each_row, select_positions
from architectures.layers.norm import RMSNorm
from architectures.layers.vocabulary import Vocabulary
from architectures.layers.weights import Replicated, WeightTable
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
    embedding = _vocabulary(weights, config, "embed_tokens.weight")
    h = all_reduce(embedding.embed(broadcast(inputs.tokens, config.devices), config.dtype), inputs.signal_buffers)
    if scale is None:
        return h
    return Replicated([shard * ops.constant(scale, config.dtype, shard.device) for shard in h])


def logits(
    weights: WeightTable,
    config: DecoderConfig,
    norm: RMSNorm,
    h: Replicated,
    inputs: DecoderValues,
    batch: RaggedBatch,
    softcapping: float | None = None,
) -> Outputs:
    """Applies the last norm and the head to the positions whose logits are returned, and gathers these.

    Args:
        weights: The weights of the graph.
        config: The configuration.
        norm: The family's norm.
        h: [T, D], after the last layer.
        inputs: The inputs of the graph.
        batch: The rows of the step.
        softcapping: Bound of the soft-capping of logits, if there is one.

    Returns:
        The outputs, on the first device.
    """
    selected = [
        select_positions(shard, row_offsets, inputs.return_n_logits, config.return_logits)
        for shard, row_offsets in zip(h, batch.row_offsets, strict=True)
    ]
    offsets, scales = selected[0][1], weights.replicated("norm.weight", [config.hidden_size])
    head = _vocabulary(weights, config, "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight")
    normed = [norm.apply(h_MD, scale) for (h_MD, _), scale in zip(selected, scales, strict=True)]
    logits_MV = ops.cast(head.logits(Replicated(normed)), DType.float32)
    if softcapping is not None:
        logits_MV = soft_cap(logits_MV, softcapping)
    return logits_MV, last_of_each_row(logits_MV, offsets), offsets, *greedy_choice(logits_MV)


def _vocabulary(weights: WeightTable, config: DecoderConfig, name: str) -> Vocabulary:
    """Declares the embedding or the head, [V, D]."""
    return Vocabulary.declare(weights, name, (config.vocab_size, config.hidden_size), config.head_encoding)
