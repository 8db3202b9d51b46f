"""Weights as a graph declares them: how they are cut, where they live, which checkpoint tensors they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeAlias

from max.dtype import DType
from max.graph import DeviceRef, TensorValue, Weight

from pipelines.loading.float8 import FLOAT8, SCALE_SUFFIX, Float8Config
from pipelines.loading.weights import WeightSource, WeightSpec

Shards = list[TensorValue]
"""One value a device: either equal copies or the parts of a whole."""


@dataclass(frozen=True)
class Part:
    """One checkpoint tensor inside a weight.

    name: its name, as the weight adapter gives it.
    size: its length along the axis that is cut.
    units: the number of equal pieces (heads) that this axis may be cut into; more devices than units share one.
    """

    name: str
    size: int
    units: int

    def sharded(self, num_shards: int) -> int:
        """The length of one device's share."""
        return self.size // min(num_shards, self.units)


@dataclass(frozen=True)
class Float8Matrix:
    """A matrix [out, in] that is multiplied in float8, with its scales, float32, one for each block of it."""

    values: TensorValue
    scales: TensorValue
    block: tuple[int, int]


Matrix: TypeAlias = TensorValue | Float8Matrix


class WeightTable:
    """The weights that a graph has declared, in order; `specs` tells the loader how to make them.

    dtype: of the activations, and of vectors such as norms and biases. matrix_dtype: what matrices are stored in.
    devices: the devices of the graph. float8: how the checkpoint's float8 tensors are scaled; those in native_float8
    are multiplied as they are where their blocks allow it, all others are dequantized.
    """

    def __init__(
        self,
        dtype: DType,
        matrix_dtype: DType,
        devices: Sequence[DeviceRef],
        float8: Float8Config | None = None,
        native_float8: AbstractSet[str] = frozenset(),
    ) -> None:
        self.dtype, self.matrix_dtype = dtype, matrix_dtype
        self.devices = list(devices)
        self.float8, self.native_float8 = float8, native_float8
        self.specs: list[WeightSpec] = []
        self._declared: dict[str, TensorValue] = {}

    def first(self, name: str, shape: Sequence[int]) -> TensorValue:
        """A weight [*shape] that lives on the first device alone."""
        return self._whole(name, name, shape, shard=0)

    def copies(self, name: str, shape: Sequence[int]) -> Shards:
        """A weight [*shape] that every device has whole."""
        return [self._whole(self._shard_name(name, i), name, shape, shard=i) for i in range(len(self.devices))]

    def lookup_table(self, name: str, shape: Sequence[int], dtype: DType) -> TensorValue:
        """A matrix [*shape] that stays on the host, in the type it is stored in: the mapped file, of which few rows
        are ever read."""
        shape = tuple(shape)
        return self._declare(WeightSpec(name, shape, dtype, (WeightSource(name),), (shape,), is_on_host=True))

    def stacked(self, name: str, parts: Sequence[Part]) -> Shards:
        """Vectors in a row, each device with its share of every part: [sum of shares]."""
        return self._cut(name, parts, [(part.size,) for part in parts], 0, self.dtype)

    def columns(self, name: str, parts: Sequence[Part], in_features: int) -> list[Matrix]:
        """Matrices [part.size, in] stacked along axis 0, each device with its share of every part's rows."""
        return self._matrices(name, parts, [(part.size, in_features) for part in parts], axis=0)

    def rows(self, name: str, parts: Sequence[Part], out_features: int) -> list[Matrix]:
        """Matrices [out, part.size] stacked along axis 0, each device with its share of their columns."""
        return self._matrices(name, parts, [(out_features, part.size) for part in parts], axis=1)

    def _matrices(self, name: str, parts: Sequence[Part], shapes: Sequence[tuple[int, int]], axis: int) -> list[Matrix]:
        if self.float8 is None or not self._are_native(parts, shapes, axis):
            return list(self._cut(name, parts, shapes, axis, self.matrix_dtype))
        values = self._cut(name, parts, shapes, axis, FLOAT8)
        scale_shapes = [self.float8.scale_shape(shape) for shape in shapes]
        scale_parts = [
            Part(part.name + SCALE_SUFFIX, shape[axis], min(part.units, shape[axis]))
            for part, shape in zip(parts, scale_shapes, strict=True)
        ]
        scales = self._cut(name + SCALE_SUFFIX, scale_parts, scale_shapes, axis, DType.float32)
        return [Float8Matrix(v, s, self.float8.block) for v, s in zip(values, scales, strict=True)]

    def _are_native(self, parts: Sequence[Part], shapes: Sequence[tuple[int, int]], axis: int) -> bool:
        """Whether all parts are to be multiplied in float8, and no block is cut by where they join or are sharded."""
        assert self.float8 is not None
        joins = [shape[0] % self.float8.block[0] for shape in shapes[:-1]]
        num_devices = len(self.devices)
        cuts = [part.sharded(num_devices) % self.float8.block[axis] for part in parts] if num_devices > 1 else []
        return self.native_float8 >= {part.name for part in parts} and not any(joins + cuts)

    def _cut(
        self, name: str, parts: Sequence[Part], source_shapes: Sequence[tuple[int, ...]], axis: int, dtype: DType
    ) -> Shards:
        num_shards = len(self.devices)
        shares = [list(shape) for shape in source_shapes]
        for share, part in zip(shares, parts, strict=True):
            share[axis] = part.sharded(num_shards)
        shape = (sum(share[0] for share in shares), *shares[0][1:])
        sources = tuple(WeightSource(part.name, part.units) for part in parts)
        return [
            self._declare(
                WeightSpec(
                    name=self._shard_name(name, i),
                    shape=shape,
                    dtype=dtype,
                    sources=sources,
                    source_shapes=tuple(source_shapes),
                    shard_axis=axis,
                    shard=i,
                    num_shards=num_shards,
                    float8=self.float8,
                )
            )
            for i in range(num_shards)
        ]

    def _whole(self, name: str, source: str, shape: Sequence[int], shard: int) -> TensorValue:
        shape, dtype = tuple(shape), self.matrix_dtype if len(shape) > 1 else self.dtype
        return self._declare(WeightSpec(name, shape, dtype, (WeightSource(source),), (shape,), shard=shard))

    def _declare(self, spec: WeightSpec) -> TensorValue:
        """A weight that is asked for twice, as a tied head is, is the same one."""
        if spec.name not in self._declared:
            self.specs.append(spec)
            device = DeviceRef.CPU() if spec.is_on_host else self.devices[spec.shard]
            self._declared[spec.name] = Weight(spec.name, spec.dtype, list(spec.shape), device=device)
        return self._declared[spec.name]

    def _shard_name(self, name: str, shard: int) -> str:
        return name if len(self.devices) == 1 else f"{name}.shard{shard}"
