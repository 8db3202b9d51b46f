"""The pieces of a weight: what one checkpoint tensor gives, converted to the weight's type a few rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph.weights import WeightData

from pipelines.loading.blocks import BlockFormat, StoredType, stored_type
from pipelines.loading.cast import can_cast, cast_into
from pipelines.loading.encodings.float8_e4m3fn import SCALE_SUFFIX, ScaledRows
from pipelines.loading.quantize import quantize_into
from pipelines.loading.weight_spec import WeightSource, WeightSpec

Array = npt.NDArray[Any]

FLOATS = (DType.float32, DType.bfloat16, DType.float16)


def can_convert(stored: StoredType, target: StoredType) -> bool:
    """Whether a tensor stored in one type can become a weight in another: casts, dequantizing, quantizing floats."""
    if stored == target:
        return True
    if isinstance(target, BlockFormat):
        return stored in FLOATS
    return can_cast(DType.float32 if isinstance(stored, BlockFormat) else stored, target)


@dataclass(frozen=True)
class Piece:
    """The part of a weight that one source holds: a view of the mapped file, with its scales if it is float8.

    name: of the tensor in the checkpoint, for messages. columns: the part of each dequantized row, where the array has
    whole rows of blocks.
    """

    name: str
    array: Array
    stored_as: StoredType
    scaled: ScaledRows | None = None
    columns: slice | None = None

    def write(self, target: Array, stored_as: StoredType, rows: slice) -> None:
        """Writes these rows into `target`, of type `stored_as`; those with scales are rounded to bfloat16 before."""
        if self.scaled is None and self.stored_as == stored_as:
            np.copyto(target, np.atleast_1d(self.array)[rows])
            return
        values, dtype = self._values(rows)
        if not isinstance(stored_as, BlockFormat):
            cast_into(target, stored_as, values, dtype)
        elif dtype == DType.float16:
            quantize_into(target, values.astype(np.float32), DType.float32, stored_as, self.name)
        else:
            quantize_into(target, np.ascontiguousarray(values), dtype, stored_as, self.name)

    def _values(self, rows: slice) -> tuple[Array, DType]:
        """Values of these rows in a float type."""
        if self.scaled is not None:
            values = self.scaled.dequantize(rows)
            rounded = np.empty(values.shape, np.uint16)
            cast_into(rounded, DType.bfloat16, values, DType.float32)
            return rounded, DType.bfloat16
        if isinstance(self.stored_as, BlockFormat):
            return self.stored_as.dequantize(self.array[rows])[:, self.columns or slice(None)], DType.float32
        return np.atleast_1d(self.array)[rows], self.stored_as


def piece_of(source: WeightSource, spec: WeightSpec, data: WeightData, scales: WeightData | None) -> Piece:
    """Cuts a source tensor to the weight's shard. scales: those of a tensor in float8 that is dequantized."""
    stored, cut = stored_type(data), source.cut(spec.shard, spec.num_shards)
    array, first = data.data, [0] * len(source.shape)
    assert isinstance(array, np.ndarray)
    if source.axis is not None:
        first[source.axis] = cut.start
        if isinstance(stored, BlockFormat) and source.axis == len(source.shape) - 1:
            if not (stored.can_hold(cut.start) and stored.can_hold(cut.stop)):
                return Piece(data.name, array, stored, columns=cut)
            cut = slice(stored.row_bytes(cut.start), stored.row_bytes(cut.stop))
        array = array[(slice(None),) * source.axis + (cut,)]
    if scales is None:
        return Piece(data.name, array, stored)
    assert spec.quant_config is not None
    scaled = ScaledRows(array, _as_float32(scales), (first[0], first[1]), spec.quant_config.block)
    return Piece(data.name, array, stored, scaled)


def scales_of(source: WeightSource, spec: WeightSpec, state_dict: Mapping[str, WeightData]) -> WeightData | None:
    """The scales of a tensor that is stored in float8 and dequantized; None for any other."""
    if not spec.is_dequantized(stored_type(state_dict[source.name])):
        return None
    return state_dict[source.name + SCALE_SUFFIX]


def _as_float32(data: WeightData) -> npt.NDArray[np.float32]:
    array = data.data
    assert isinstance(array, np.ndarray)
    values = np.empty(array.shape, np.float32)
    cast_into(values, DType.float32, array, data.dtype)
    return values
