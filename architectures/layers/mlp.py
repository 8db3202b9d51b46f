"""The gated feed-forward block."""

from __future__ import annotations

from architectures.layers.activations import gated
from architectures.layers.linear import column_parallel, row_parallel
from architectures.layers.weights import Partial, Replicated, Sharded, WeightTable
from pipelines.loading.weight_spec import WeightSource


def gated_mlp(weights: WeightTable, x: Replicated, name: str, hidden: int, size: int, activation: str) -> Partial:
    """Computes down(activation(gate(x)) * up(x)): x [T, D] -> [T, D], to be summed over the devices.

    Args:
        weights: The weights of the graph.
        x: The hidden states.
        name: Prefix of the block's weights.
        hidden: D.
        size: Width between the projections.
        activation: Name in `ACTIVATIONS`.
    """
    gates = [WeightSource(f"{name}.{part}_proj.weight", (size, hidden), axis=0, units=size) for part in ("gate", "up")]
    gate_up = column_parallel(weights, x, f"{name}.gate_up_proj", gates)
    activated = Sharded([gated(shard, activation) for shard in gate_up])
    down = WeightSource(f"{name}.down_proj.weight", (hidden, size), axis=1, units=size)
    return row_parallel(weights, activated, down)
