"""The weights of a run in blocks, dequantized: what the reference computes with, so that only arithmetic differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from max.dtype import DType
from max.graph import Shape
from max.graph.weights import WeightData

from pipelines.errors import InputError
from pipelines.loading.block_encoding import BlockEncoding
from pipelines.loading.blocks import StoredType, stored_type
from pipelines.loading.pieces import Piece
from pipelines.loading.weight_spec import WeightSource

if TYPE_CHECKING:
    from pipelines.load import PreparedPipeline

Values = npt.NDArray[np.float32]


def load_weights(model: torch.nn.Module, prepared: PreparedPipeline) -> None:
    """Replaces the parameters of a transformers model by the weights that the run computes with.

    Args:
        model: The model, with float32 parameters.
        prepared: The run, in blocks.

    Raises:
        InputError: transformers has no parameter of its own for a tensor, as for experts.
    """
    parameters = _by_graph_name(model, prepared)
    with torch.no_grad():
        for name, values in _values(prepared):
            if name not in parameters:
                raise InputError(f"verify can't dequantize '{name}': transformers keeps it in another shape")
            parameters[name].copy_(torch.from_numpy(values))


def _by_graph_name(model: torch.nn.Module, prepared: PreparedPipeline) -> Mapping[str, torch.Tensor]:
    """The model's parameters and buffers, by the names that the weight adapter gives them."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers(remove_duplicate=False))
    stand_ins = {
        name: WeightData(np.empty(0, np.float32), name, DType.float32, Shape(tensor.shape))
        for name, tensor in tensors.items()
        if name in model.state_dict()
    }
    adapt = prepared.architecture.weight_adapters["safetensors"]
    adapted = adapt(stand_ins, prepared.checkpoint.huggingface_config)
    return {name: tensors[data.name] for name, data in adapted.items()}


def _values(prepared: PreparedPipeline) -> Iterator[tuple[str, Values]]:
    """The checkpoint's tensors as the run computes with them, by the graph's names."""
    huggingface_config = prepared.checkpoint.huggingface_config
    config = prepared.architecture.config.initialize_from_config(prepared.config, huggingface_config)
    stored = {name: stored_type(data) for name, data in prepared.state_dict.items()}
    for name, data in prepared.state_dict.items():
        piece = Piece(data.name, np.asarray(data.data), stored[name])
        target = _in_memory(name, [int(dim) for dim in data.shape], stored, config, prepared)
        values = np.empty([int(dim) for dim in data.shape], np.float32)
        if not isinstance(target, DType):
            blocks = np.empty((*values.shape[:-1], target.row_bytes(values.shape[-1])), np.uint8)
            piece.write(blocks, target, slice(None))
            values[...] = target.dequantize(blocks)
        else:
            piece.write(np.atleast_1d(values), DType.float32, slice(None))
        yield name, values


def _in_memory(
    name: str, shape: list[int], stored: Mapping[str, StoredType], config: Any, prepared: PreparedPipeline
) -> StoredType:
    """Type in which the run holds a tensor: vectors and looked-up rows are as stored, in float32 for our purpose."""
    if len(shape) != 2 or name in prepared.architecture.lookup_tables:
        return DType.float32
    record = config.head_encoding if name in prepared.architecture.head_weights else config.encoding
    found = record.of_matrix([WeightSource(name, (shape[0], shape[1]))], 1, stored, config.quant_config)
    return found.block_format if isinstance(found, BlockEncoding) else DType.float32
