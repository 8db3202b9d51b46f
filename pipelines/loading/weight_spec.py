"""Weights as a graph declares them: the checkpoint tensors that each is made of, and how these are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from max.driver import Device
from max.dtype import DType
from max.graph import DeviceRef, Graph

if TYPE_CHECKING:
    from pipelines.loading.encodings.float8_e4m3fn import Float8Config


@dataclass(frozen=True)
class WeightSource:
    """A checkpoint tensor that is, or is part of, one graph weight.

    name: as the weight adapter gives it. shape: of the whole tensor. axis: the one that devices share, None where each
    holds all of it. units: the equal pieces (heads, say) that this axis may be cut into; devices in excess of the
    units share them in equal runs.
    """

    name: str
    shape: tuple[int, ...]
    axis: int | None = None
    units: int = 1

    def cut(self, shard: int, num_shards: int) -> slice:
        """The range of `axis` that one shard holds.

        Raises:
            ValueError: The units can't be spread evenly over the shards.
        """
        if self.axis is None:
            return slice(None)
        size, num_parts = self.shape[self.axis], min(self.units, num_shards)
        if size % self.units or self.units % num_parts or num_shards % num_parts:
            raise ValueError(f"{self.name}: {size} in {self.units} units can't be spread over {num_shards} shards")
        part_size, part = size // num_parts, shard * num_parts // num_shards
        return slice(part * part_size, (part + 1) * part_size)

    def shard_size(self, num_shards: int) -> int:
        """The length of `axis` on one shard."""
        assert self.axis is not None
        cut = self.cut(0, num_shards)
        return int(cut.stop - cut.start)

    def shard_shape(self, num_shards: int) -> tuple[int, ...]:
        """The shape of what one shard holds."""
        shape = list(self.shape)
        if self.axis is not None:
            shape[self.axis] = self.shard_size(num_shards)
        return tuple(shape)

    def bias(self) -> WeightSource:
        """The bias of a projection [out, in] that is cut along its outputs."""
        return replace(self, name=self.name.removesuffix(".weight") + ".bias", shape=self.shape[:1])


@dataclass(frozen=True)
class WeightSpec:
    """How one graph weight is made from checkpoint tensors.

    dtype: of the weight. sources: each is cut down to the shard, then they are joined along axis 0. shard: the number
    of the device, of num_shards. quant_config: how sources in float8 are scaled. is_on_host: the weight stays in host
    memory whatever the devices are.
    """

    name: str
    dtype: DType
    sources: tuple[WeightSource, ...]
    shard: int = 0
    num_shards: int = 1
    quant_config: Float8Config | None = None
    is_on_host: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight on its device."""
        shapes = [source.shard_shape(self.num_shards) for source in self.sources]
        return shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def device_ref(self, devices: Sequence[DeviceRef]) -> DeviceRef:
        """The device that the graph expects the weight on."""
        return DeviceRef.CPU() if self.is_on_host else devices[self.shard]

    def is_placed_on_host(self, devices: Sequence[Device]) -> bool:
        """Whether the loader leaves the weight in host memory."""
        return self.is_on_host or devices[self.shard].is_host

    def is_dequantized(self, source: DType) -> bool:
        """Whether a source stored in this type has scales that are multiplied in while it is loaded."""
        return self.quant_config is not None and self.quant_config.is_dequantized(source, self.dtype)


@dataclass(frozen=True)
class TracedGraph:
    """A graph, and how each of its weights is made from the checkpoint."""

    graph: Graph
    weights: Sequence[WeightSpec]
