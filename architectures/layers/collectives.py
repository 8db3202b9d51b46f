"""Sums over devices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from max.graph import BufferValue, DeviceRef, TensorValue, ops

from architectures.layers.weights import Shards


def broadcast(x: TensorValue, devices: Sequence[DeviceRef]) -> Shards:
    """The same value on every device."""
    return [x if device == x.device else x.to(device) for device in devices]


def all_reduce(parts: Shards, signal_buffers: Sequence[BufferValue]) -> Shards:
    """The sum of the parts, on every device.

    Shards that share the CPU are added there, so that tensor parallelism can be tested without accelerators.
    """
    if len(parts) == 1:
        return parts
    if parts[0].device.is_cpu():
        return [reduce(ops.add, parts)] * len(parts)
    return ops.allreduce.sum(parts, signal_buffers)
