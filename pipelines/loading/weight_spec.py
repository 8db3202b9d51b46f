"""Specifications of a graph's weights: the checkpoint tensors that each is made of, and their cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from max.driver import Device
from max.dtype import DType
from max.graph import DeviceRef, Graph

from pipelines.loading.blocks import BlockFormat, StoredType

if TYPE_CHECKING:
    from pipelines.loading.encodings.float8_e4m3fn import Float8Config


@dataclass(frozen=True)
class WeightSource:
    """A checkpoint tensor that is, or is part of, one graph weight.

    name: as the weight adapter gives it. shape: of the whole tensor. axis: the axis that is split over devices; None:
    each device holds all of it. units: equal pieces (heads, for example) that this axis may be cut into; if there are
    more devices than units, equally many devices hold each unit. padding: if it is set, any size can be split: several
    shards are equally long, a multiple of it, and the last ones end in zeros.
    """

    name: str
    shape: tuple[int, ...]
    axis: int | None = None
    units: int = 1
    padding: int | None = None

    def cut(self, shard: int, num_shards: int) -> slice:
        """Range of `axis` that one shard holds; with padding the rest of the shard is zeros.

        Raises:
            ValueError: The units can't be split evenly over the shards.
        """
        if self.axis is None:
            return slice(None)
        size, num_parts = self.shape[self.axis], min(self.units, num_shards)
        if self.padding is not None:
            length = self.shard_size(num_shards)
            return slice(min(shard * length, size), min((shard + 1) * length, size))
        if size % self.units or self.units % num_parts or num_shards % num_parts:
            raise ValueError(f"{self.name}: {size} in {self.units} units can't be split over {num_shards} shards")
        part_size, part = size // num_parts, shard * num_parts // num_shards
        return slice(part * part_size, (part + 1) * part_size)

    def shard_size(self, num_shards: int) -> int:
        """Length of `axis` on one shard."""
        assert self.axis is not None
        if self.padding is not None:
            size = self.shape[self.axis]
            return size if num_shards == 1 else -(-size // (num_shards * self.padding)) * self.padding
        cut = self.cut(0, num_shards)
        return int(cut.stop - cut.start)

    def shard_shape(self, num_shards: int) -> tuple[int, ...]:
        """Shape of one shard."""
        shape = list(self.shape)
        if self.axis is not None:
            shape[self.axis] = self.shard_size(num_shards)
        return tuple(shape)

    def bias(self) -> WeightSource:
        """Source of the bias of this projection [out, in], which is cut along its outputs."""
        return replace(self, name=self.name.removesuffix(".weight") + ".bias", shape=self.shape[:1])


@dataclass(frozen=True)
class WeightSpec:
    """The specification of one graph weight: the checkpoint tensors that it is made of, and its device.

    stored_as: its type, or the format of its blocks. sources: each is cut to the shard, then they are joined along axis
    0. shard: the number of the device, of num_shards. quant_config: scaling of sources in float8. is_on_host: whether
    the weight stays in host memory whatever the devices are.
    """

    name: str
    stored_as: StoredType
    sources: tuple[WeightSource, ...]
    shard: int = 0
    num_shards: int = 1
    quant_config: Float8Config | None = None
    is_on_host: bool = False

    @property
    def block_format(self) -> BlockFormat | None:
        """Format of its blocks, if it has any."""
        return self.stored_as if isinstance(self.stored_as, BlockFormat) else None

    @property
    def dtype(self) -> DType:
        """Type of the weight in the graph: blocks are bytes there."""
        return DType.uint8 if isinstance(self.stored_as, BlockFormat) else self.stored_as

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight on its device: of blocks [rows, bytes of a row]."""
        shapes = [source.shard_shape(self.num_shards) for source in self.sources]
        shape = shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return shape if self.block_format is None else (*shape[:-1], self.block_format.row_bytes(shape[-1]))

    def device_ref(self, devices: Sequence[DeviceRef]) -> DeviceRef:
        """Device on which the graph expects the weight."""
        return DeviceRef.CPU() if self.is_on_host else devices[self.shard]

    def is_placed_on_host(self, devices: Sequence[Device]) -> bool:
        """Whether the loader leaves the weight in host memory."""
        return self.is_on_host or devices[self.shard].is_host

    def is_dequantized(self, source: StoredType) -> bool:
        """Whether a source stored in this type has scales that are multiplied in while it is loaded."""
        return self.quant_config is not None and self.quant_config.is_dequantized(source, self.dtype)


@dataclass(frozen=True)
class TracedGraph:
    """A graph, with the others of its module if there are any, and the specifications of its weights."""

    graph: Graph
    weights: Sequence[WeightSpec]
