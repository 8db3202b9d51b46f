"""Values on several devices: copies of one, and sums of parts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from max.graph import BufferValue, DeviceRef, TensorValue, ops

from architectures.layers.weights import Partial, Replicated


def broadcast(x: TensorValue, devices: Sequence[DeviceRef]) -> Replicated:
    """The same value on every device."""
    return Replicated([x if device == x.device else x.to(device) for device in devices])


def all_reduce(parts: Partial, signal_buffers: Sequence[BufferValue]) -> Replicated:
    """The sum of the parts, on every device.

    Shards that share the CPU are added there, so that tensor parallelism can be tested without accelerators.
    """
    if len(parts) == 1:
        return Replicated(list(parts))
    if parts[0].device.is_cpu():
        return Replicated([reduce(ops.add, parts)] * len(parts))
    return Replicated(ops.allreduce.sum(parts, signal_buffers))


def add(x: Replicated, y: Replicated) -> Replicated:
    """The sums, device by device."""
    return Replicated([a + b for a, b in zip(x, y, strict=True)])
