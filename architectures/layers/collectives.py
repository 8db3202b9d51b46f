"""Collectives: broadcasts and sums over the devices of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from max.graph import BufferValue, DeviceRef, TensorValue, ops

from architectures.layers.weights import Partial, Replicated, Sharded


def broadcast(x: TensorValue, devices: Sequence[DeviceRef]) -> Replicated:
    """Copies a value to every device."""
    return Replicated([x if device == x.device else x.to(device) for device in devices])


def all_reduce(parts: Partial, signal_buffers: Sequence[BufferValue]) -> Replicated:
    """Sums the parts, with the result on every device.

    Parts that are all on the CPU are added there, so that tensor parallelism can be tested without GPUs.
    """
    if len(parts) == 1:
        return Replicated(list(parts))
    if parts[0].device.is_cpu():
        return Replicated([reduce(ops.add, parts)] * len(parts))
    return Replicated(ops.allreduce.sum(parts, signal_buffers))


def gather_columns(shards: Sharded) -> TensorValue:
    """Joins the columns of all devices' [T, columns] on the first device."""
    if len(shards) == 1:
        return shards[0]
    return ops.concat([shard.to(shards[0].device) for shard in shards], axis=1)


def add(x: Replicated, y: Replicated) -> Replicated:
    """Adds two values, device by device."""
    return Replicated([a + b for a, b in zip(x, y, strict=True)])
