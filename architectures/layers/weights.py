"""Weights as a graph declares them: how they are cut, where they live, which checkpoint tensors they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from max.dtype import DType
from max.graph import DeviceRef, TensorValue, Weight

from pipelines.weights import WeightSource, WeightSpec

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


class WeightTable:
    """The weights that a graph has declared, in order; `specs` tells the loader how to make them.

    dtype: what the weights are stored in. devices: the devices of the graph.
    """

    def __init__(self, dtype: DType, devices: Sequence[DeviceRef]) -> None:
        self.dtype = dtype
        self.devices = list(devices)
        self.specs: list[WeightSpec] = []

    def first(self, name: str, shape: Sequence[int]) -> TensorValue:
        """A weight [*shape] that lives on the first device alone."""
        return self._whole(name, name, shape, shard=0)

    def copies(self, name: str, shape: Sequence[int]) -> Shards:
        """A weight [*shape] that every device has whole."""
        return [self._whole(self._shard_name(name, i), name, shape, shard=i) for i in range(len(self.devices))]

    def columns(self, name: str, parts: Sequence[Part], *rest: int) -> Shards:
        """The parts stacked along axis 0, each device with its share of every part: [sum of shares, *rest]."""
        shape = (sum(part.sharded(len(self.devices)) for part in parts), *rest)
        return self._cut(name, shape, parts, [(part.size, *rest) for part in parts], axis=0)

    def rows(self, part: Part, out_features: int) -> Shards:
        """A matrix [out, part.size], each device with its share of the columns."""
        shape = (out_features, part.sharded(len(self.devices)))
        return self._cut(part.name, shape, [part], [(out_features, part.size)], axis=1)

    def _cut(
        self,
        name: str,
        shape: tuple[int, ...],
        parts: Sequence[Part],
        source_shapes: Sequence[tuple[int, ...]],
        axis: int,
    ) -> Shards:
        sources, num_shards = tuple(WeightSource(part.name, part.units) for part in parts), len(self.devices)
        specs = [
            WeightSpec(self._shard_name(name, i), shape, self.dtype, sources, tuple(source_shapes), axis, i, num_shards)
            for i in range(num_shards)
        ]
        return [self._declare(spec) for spec in specs]

    def _whole(self, name: str, source: str, shape: Sequence[int], shard: int) -> TensorValue:
        shape = tuple(shape)
        return self._declare(WeightSpec(name, shape, self.dtype, (WeightSource(source),), (shape,), shard=shard))

    def _declare(self, spec: WeightSpec) -> TensorValue:
        self.specs.append(spec)
        return Weight(spec.name, spec.dtype, list(spec.shape), device=self.devices[spec.shard])

    def _shard_name(self, name: str, shard: int) -> str:
        return name if len(self.devices) == 1 else f"{name}.shard{shard}"
