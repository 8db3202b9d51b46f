"""Mistakes that mypy must find: `make check` fails when one of the ignored errors below is no error any more.

Nothing runs this file. pyproject.toml switches `warn_unused_ignores` on for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from max.graph import BufferValue

from architectures.layers.collectives import add, all_reduce
from architectures.layers.linear import row_parallel
from architectures.layers.mlp import gated_mlp
from architectures.layers.weights import Partial, Replicated, Sharded, WeightTable
from pipelines.loading.weight_spec import WeightSource

Signals = Sequence[BufferValue]


def mlp(weights: WeightTable, h: Replicated) -> Partial:
    """The devices' parts of a block's output."""
    return gated_mlp(weights, h, "mlp", hidden=8, size=16, activation="silu")


def a_sum_over_the_devices(weights: WeightTable, h: Replicated, signals: Signals) -> Replicated:
    """No mistake."""
    return add(h, all_reduce(mlp(weights, h), signals))


def a_forgotten_all_reduce(weights: WeightTable, h: Replicated) -> Replicated:
    """Each device would add its own part alone."""
    return add(h, mlp(weights, h))  # type: ignore[arg-type]


def a_forgotten_all_reduce_at_the_end(weights: WeightTable, h: Replicated) -> Replicated:
    """The same, in what is returned."""
    return mlp(weights, h)  # type: ignore[return-value]


def a_second_all_reduce(h: Replicated, signals: Signals) -> Replicated:
    """The value would be multiplied by the number of devices."""
    return all_reduce(h, signals)  # type: ignore[arg-type]


def a_sum_of_shards(heads: Sharded, signals: Signals) -> Replicated:
    """Different heads would be added."""
    return all_reduce(heads, signals)  # type: ignore[arg-type]


def a_product_with_columns_of_a_value_that_is_whole(
    weights: WeightTable, h: Replicated, source: WeightSource
) -> Partial:
    """The widths differ on more than one device."""
    return row_parallel(weights, h, source)  # type: ignore[arg-type]
