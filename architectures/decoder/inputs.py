"""The inputs of a decoder graph, named once: as types while tracing, as values in the graph, as buffers at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Generic, TypeVar

from max import tree
from max.driver import Buffer
from max.dtype import DType
from max.graph import BufferType, BufferValue, DeviceRef, Graph, TensorType, TensorValue

from kv_cache import KVCacheParams
from pipelines.pipeline_model import ModelInputs, signal_buffer_types

_Tensor = TypeVar("_Tensor")
_Buffer = TypeVar("_Buffer")


@tree.dataclass
@dataclass
class DecoderInputs(ModelInputs, Generic[_Tensor, _Buffer]):
    """The inputs of one step of a decoder over ragged rows; a field that is None is not an input of the graph.

    tokens [T] int64; input_row_offsets [B + 1] uint32; signal_buffers: one per device; return_n_logits [1] int64, on
    the host; kv_cache_inputs: the pages, by page group and device; position_ids [1, T] uint32; freqs_cis: a table
    [positions, H] float32 per device, by layer type; embeddings [T, D]: in a step of images, in place of the tokens'
    own. lora_ids, lora_ranks, hidden_states: inputs of no graph yet.
    """

    tokens: _Tensor
    input_row_offsets: _Tensor
    signal_buffers: list[_Buffer]
    return_n_logits: _Tensor
    _: KW_ONLY
    kv_cache_inputs: dict[str, tuple[Any, ...]] | None = None
    lora_ids: _Tensor | None = None
    lora_ranks: _Tensor | None = None
    hidden_states: _Tensor | None = None
    position_ids: _Tensor | None = None
    freqs_cis: dict[str, list[_Tensor]] | None = None
    embeddings: _Tensor | None = None

    def flatten(self) -> list[_Tensor | _Buffer]:
        """Lists the inputs in the order of the graph's."""
        return tree.leaves(self)


DecoderTypes = DecoderInputs[TensorType, BufferType]
DecoderValues = DecoderInputs[TensorValue, BufferValue]
DecoderBuffers = DecoderInputs[Buffer, Buffer]


def decoder_input_types(
    kv_params: KVCacheParams,
    devices: Sequence[DeviceRef],
    rope_dims: Mapping[str, int],
    embeddings: tuple[DType, int] | None = None,
) -> DecoderTypes:
    """Types of a decoder graph's inputs.

    Args:
        kv_params: The page groups.
        devices: The devices of the graph.
        rope_dims: Width of the RoPE table of each layer type.
        embeddings: Type and width of the embeddings, if they are an input.
    """
    first, host = devices[0], DeviceRef.CPU()
    return DecoderInputs(
        tokens=TensorType(DType.int64, ["total_seq_len"], first),
        input_row_offsets=TensorType(DType.uint32, ["input_row_offsets_len"], first),
        signal_buffers=signal_buffer_types(devices),
        return_n_logits=TensorType(DType.int64, [1], host),
        kv_cache_inputs=kv_params.symbolic_inputs(),
        position_ids=TensorType(DType.uint32, [1, "total_seq_len"], first),
        freqs_cis={
            layer_type: [TensorType(DType.float32, [f"{layer_type}_positions", dim], device) for device in devices]
            for layer_type, dim in rope_dims.items()
        },
        embeddings=None if embeddings is None else TensorType(embeddings[0], ["total_seq_len", embeddings[1]], first),
    )


def graph_values(types: DecoderTypes, graph: Graph) -> DecoderValues:
    """Names the inputs of a graph that was declared with `types.flatten()`."""
    return tree.unflatten(tree.flatten(types)[1], graph.inputs)
