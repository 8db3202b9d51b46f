"""Matrix products with weights, on one device and split over several."""

from __future__ import annotations

from collections.abc import Sequence

from max.graph import TensorValue

from architectures.layers.weights import Partial, Replicated, Sharded, WeightTable
from pipelines.loading.encoding import Matrix
from pipelines.loading.weight_spec import WeightSource


def matmul(x_TI: TensorValue, matrix: Matrix) -> TensorValue:
    """x [T, in] @ matrix [out, in].T -> [T, out]."""
    return matrix.encoding.matmul(x_TI, matrix)


def column_parallel(
    weights: WeightTable, x: Replicated, name: str, sources: Sequence[WeightSource], bias: bool = False
) -> Sharded:
    """x [T, in] times stacked matrices [out, in]: each device gives its share of every one's outputs.

    name: of the weight in the graph, without `.weight`. bias: whether each matrix has one.
    """
    matrices = weights.matrices(f"{name}.weight", sources)
    y = [matmul(shard, matrix) for shard, matrix in zip(x, matrices, strict=True)]
    if bias:
        biases = weights.stacked(f"{name}.bias", [source.bias() for source in sources])
        y = [shard + b for shard, b in zip(y, biases, strict=True)]
    return Sharded(y)


def row_parallel(weights: WeightTable, x: Sharded, source: WeightSource, bias: bool = False) -> Partial:
    """Each device's x [T, in / devices] times its columns of the matrix [out, in]: parts whose sum is the product.

    The bias is added once, on the first device.
    """
    matrices = weights.matrices(source.name, [source])
    y = [matmul(shard, matrix) for shard, matrix in zip(x, matrices, strict=True)]
    if bias:
        y[0] = y[0] + weights.on_first_device(source.bias().name, source.shape[:1])
    return Partial(y)
