"""Memory of the GPUs of a run: what its weights and steps take of each, and what that leaves for the cache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from max.driver import Device
from max.dtype import DType
from max.graph.weights import WeightData

from kv_cache import format_bytes
from pipelines.errors import UTILIZATION, InputError
from pipelines.loading.blocks import stored_type
from pipelines.loading.weight_spec import WeightSpec

TABLE_SHARE = 0.1
"""The part of a GPU's memory that lookup tables may take; a step waits for rows of larger ones, which the host has."""


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of one GPU before a model is loaded, in bytes.

    name: as in `devices`. total, free: as the device reports them. weights: those that will be placed on it.
    activations: an estimate of what a step takes.
    """

    name: str
    total: int
    free: int
    weights: int
    activations: int

    def for_cache(self, utilization: float) -> int:
        """Bytes that the cache may take if the share 1 - utilization of the device stays free.

        Raises:
            InputError: There are none.
        """
        usable = self.free - math.ceil((1 - utilization) * self.total)
        left = usable - self.weights - self.activations
        if left <= 0:
            raise InputError(
                f"{self.name} has {format_bytes(max(0, usable))} to use ({format_bytes(self.free)} of "
                f"{format_bytes(self.total)} are free), but the weights take {format_bytes(self.weights)} and a step "
                f"about {format_bytes(self.activations)}: name more GPUs in devices (--devices), choose a smaller "
                "quantization_encoding (--quantization-encoding), lower max_batch_tokens (--max-batch-tokens) or "
                f"max_batch_size (--max-batch-size), or raise {UTILIZATION}"
            )
        return left


def read_device_memory(devices: Sequence[Device], weights: Sequence[int], activation_bytes: int) -> list[DeviceMemory]:
    """Reads what each GPU has.

    Args:
        devices: The GPUs of a run.
        weights: Bytes of the weights on each (`placed_bytes`).
        activation_bytes: What a step takes on the device where it takes most.
    """
    stats = [device.stats for device in devices]
    return [
        DeviceMemory(f"gpu:{device.id}", int(s["total_memory"]), int(s["free_memory"]), placed, activation_bytes)
        for device, s, placed in zip(devices, stats, weights, strict=True)
    ]


def placed_bytes(specs: Iterable[WeightSpec], num_devices: int) -> list[int]:
    """Bytes of the weights on each device, once for each name: graphs of a model share the weights of a name."""
    placed = [0] * num_devices
    for spec in {spec.name: spec for spec in specs}.values():
        if not spec.is_on_host:
            placed[spec.shard] += math.prod(spec.shape) * spec.dtype.size_in_bytes
    return placed


def are_tables_on_device(tables: Iterable[WeightData], device: Device) -> bool:
    """Whether a run keeps lookup tables on its first device: a GPU with much more memory, and they are in no blocks."""
    if device.is_host:
        return False
    num_bytes = 0
    for table in tables:
        dtype = stored_type(table)
        if not isinstance(dtype, DType):  # only the host's kernels read blocks
            return False
        num_bytes += math.prod(int(dim) for dim in table.shape) * dtype.size_in_bytes
    return num_bytes <= TABLE_SHARE * int(device.stats["total_memory"])


def cache_bytes(memory: Sequence[DeviceMemory], utilization: float, requested: int | None) -> int:
    """Bytes that the cache may take on all devices together: each holds an equal part, so the tightest counts.

    Args:
        memory: Of each device.
        utilization: The share of a device's memory that the run may use.
        requested: What the run asks for, on all devices together.

    Raises:
        InputError: A device has no memory for a cache, or less than its part of `requested`.
    """
    left = [device.for_cache(utilization) for device in memory]
    tightest = min(range(len(memory)), key=left.__getitem__)
    if requested is not None and requested > len(memory) * left[tightest]:
        part = f"its part of the {format_bytes(requested)} of " if len(memory) > 1 else f"{format_bytes(requested)} of "
        raise InputError(
            f"{memory[tightest].name} has {format_bytes(left[tightest])} left for {part}kv_cache_memory "
            f"(--kv-cache-memory), beside weights and steps: lower it, or raise {UTILIZATION}"
        )
    return len(memory) * left[tightest]
