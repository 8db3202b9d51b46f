"""The gated feed-forward block."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from max.graph import TensorValue, ops

from architectures.layers.linear import column_parallel, row_parallel
from architectures.layers.weights import Part, Shards, WeightTable

Activation = Callable[[TensorValue], TensorValue]

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu_pytorch_tanh": lambda x: ops.gelu(x, approximate="tanh"),
    "gelu": ops.gelu,
    "silu": ops.silu,
    "relu": ops.relu,
}
"""By the name in config.json."""


def gated_mlp(weights: WeightTable, x: Shards, name: str, hidden: int, size: int, activation: str) -> Shards:
    """down(activation(gate(x)) * up(x)) over [T, D]: parts, to be summed over the devices."""
    gates = [Part(f"{name}.gate_proj", size, size), Part(f"{name}.up_proj", size, size)]
    gate_up = column_parallel(weights, x, f"{name}.gate_up_proj", gates, hidden)
    width = gates[0].sharded(len(x))
    activated = []
    for shard in gate_up:
        gate, up = ops.split(shard, [width, width], axis=1)
        activated.append(ACTIVATIONS[activation](gate) * up)
    return row_parallel(weights, activated, Part(f"{name}.down_proj", size, size), hidden)
