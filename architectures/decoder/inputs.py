"""What a decoder graph takes, named once: as types while tracing, as values in the graph, as buffers at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Generic, Self, TypeVar

from max import tree
from max.driver import Buffer, Device
from max.dtype import DType
from max.graph import BufferType, BufferValue, DeviceRef, Graph, TensorType, TensorValue
from max.nn import Signals
from max.nn.kv_cache import KVCacheInputsPerDevice

from kv_cache import KVCacheParams

_Tensor = TypeVar("_Tensor")
_Buffer = TypeVar("_Buffer")


@tree.dataclass
@dataclass
class DecoderInputs(Generic[_Tensor, _Buffer]):
    """The inputs of one step of a decoder over ragged rows.

    tokens [T] int64; input_row_offsets [B + 1] uint32; return_n_logits [1] int64, on the host;
    position_ids [1, T] uint32; freqs_cis: a table [positions, H] float32 a device, by kind of layer;
    signal_buffers: one a device; kv_cache_inputs: the pages, by page group and device.
    """

    tokens: _Tensor
    input_row_offsets: _Tensor
    return_n_logits: _Tensor
    position_ids: _Tensor
    freqs_cis: dict[str, list[_Tensor]]
    signal_buffers: list[_Buffer]
    kv_cache_inputs: dict[str, tuple[KVCacheInputsPerDevice, ...]]

    def flatten(self) -> list[_Tensor | _Buffer]:
        """All of them, in the order of the graph's inputs."""
        return tree.leaves(self)


@tree.dataclass
@dataclass
class ImageInputs(DecoderInputs[_Tensor, _Buffer]):
    """The inputs of a step whose rows are images.

    embeddings [T, D] float32: what the vision tower made of them, in place of the tokens' embeddings.
    """

    embeddings: _Tensor

    @classmethod
    def of(cls, inputs: DecoderInputs[_Tensor, _Buffer], embeddings: _Tensor) -> Self:
        return cls(**{f.name: getattr(inputs, f.name) for f in fields(inputs)}, embeddings=embeddings)


DecoderTypes = DecoderInputs[TensorType, BufferType]
DecoderValues = DecoderInputs[TensorValue, BufferValue]
DecoderBuffers = DecoderInputs[Buffer, Buffer]


def decoder_input_types(
    kv_params: KVCacheParams, devices: Sequence[DeviceRef], rope_dims: Mapping[str, int]
) -> DecoderTypes:
    """The types of a decoder graph's inputs. rope_dims: the width of the RoPE table of each kind of layer."""
    first, host = devices[0], DeviceRef.CPU()
    return DecoderInputs(
        tokens=TensorType(DType.int64, ["total_seq_len"], first),
        input_row_offsets=TensorType(DType.uint32, ["input_row_offsets_len"], first),
        return_n_logits=TensorType(DType.int64, [1], host),
        position_ids=TensorType(DType.uint32, [1, "total_seq_len"], first),
        freqs_cis={
            kind: [TensorType(DType.float32, [f"{kind}_positions", dim], device) for device in devices]
            for kind, dim in rope_dims.items()
        },
        signal_buffers=[signal_buffer_type(device) for device in devices],
        kv_cache_inputs=kv_params.symbolic_inputs(),
    )


def image_input_types(types: DecoderTypes, hidden_size: int) -> ImageInputs[TensorType, BufferType]:
    """The same for the graph of steps whose rows are images."""
    embeddings = TensorType(DType.float32, ["total_seq_len", hidden_size], types.tokens.device)
    return ImageInputs.of(types, embeddings)


def graph_values(types: DecoderTypes, graph: Graph) -> DecoderValues:
    """The inputs of a graph that was declared with `types.flatten()`, under their names."""
    return tree.unflatten(tree.flatten(types)[1], graph.inputs)


def signal_buffer_type(device: DeviceRef) -> BufferType:
    """The buffer in which collectives meet; a single byte on the CPU, where nothing waits for a peer."""
    return BufferType(DType.uint8, [1], device) if device.is_cpu() else Signals([device]).input_types()[0]


def allocate_signal_buffers(devices: Sequence[Device]) -> list[Buffer]:
    """One signal buffer a device, ready for use."""
    if devices[0].is_host:
        return [Buffer.zeros([1], DType.uint8, device) for device in devices]
    return Signals.allocate(devices)
