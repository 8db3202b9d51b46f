"""The ends of every decoder: from tokens to the first hidden state, from the last one to logits."""

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
"""logits [M, V], next_token_logits [B, V], logit_offsets [B + 1], greedy_tokens [M], max_logits [M]."""


def trace(
    name: str,
    config: DecoderConfig,
    forward: Callable[[WeightTable, DecoderValues], Outputs],
    takes_embeddings: bool = False,
) -> TracedGraph:
    """A decoder's graph: no weights are read, no device is opened, nothing is compiled.

    takes_embeddings: whether the embeddings of the tokens are an input, as in steps whose rows are images.

    Raises:
        ValueError: The configuration is not finalized.
    """
    if not config.is_finalized:
        raise ValueError("finalize the configuration before building a graph: only the weights tell the rest")
    embeddings = (config.dtype, config.hidden_size) if takes_embeddings else None
    types = decoder_input_types(config.get_kv_params(), config.devices, config.rope_dims, embeddings)
    weights = WeightTable(config.dtype, config.encoding, config.devices, config.stored, config.quant_config)
    with Graph(name, input_types=types.flatten(), custom_extensions=extensions(config.devices)) as graph:
        graph.output(*forward(weights, graph_values(types, graph)))
    return TracedGraph(graph, weights.specs)


def ragged_batch(inputs: DecoderValues, config: DecoderConfig) -> RaggedBatch:
    """The rows of a step on every device."""
    assert inputs.position_ids is not None and inputs.freqs_cis is not None and inputs.kv_cache_inputs is not None
    return RaggedBatch(
        row_offsets=broadcast(inputs.input_row_offsets, config.devices),
        position_ids=broadcast(inputs.position_ids, config.devices),
        freqs_cis=inputs.freqs_cis,
        pages=inputs.kv_cache_inputs,
        signal_buffers=inputs.signal_buffers,
    )


def embed(weights: WeightTable, config: DecoderConfig, inputs: DecoderValues, scale: float | None = None) -> Replicated:
    """The tokens' rows of the embedding, times `scale` if there is one: [T, D] on every device.

    In a step whose rows are images, the embeddings that are an input.
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
    """The last norm and the head, on the first device, for the positions that are wanted."""
    h_MD, offsets = select_positions(h[0], inputs.input_row_offsets, inputs.return_n_logits, config.return_logits)
    scale = weights.on_first_device("norm.weight", [config.hidden_size])
    name = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    head = _vocabulary_matrix(weights, config, name)
    logits_MV = ops.cast(matmul(norm.apply(h_MD, scale), head), DType.float32)
    if softcapping is not None:
        logits_MV = soft_cap(logits_MV, softcapping)
    return logits_MV, last_of_each_row(logits_MV, offsets), offsets, *greedy_choice(logits_MV)


def _vocabulary_matrix(weights: WeightTable, config: DecoderConfig, name: str) -> Matrix:
    """Embedding or head, [V, D]."""
    return weights.matrix_on_first_device(name, (config.vocab_size, config.hidden_size))
