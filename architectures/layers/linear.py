"""Matrix products with weights, on one device and split over several."""

from __future__ import annotations

from collections.abc import Sequence

from max.graph import TensorValue

from architectures.layers.weights import Partial, Replicated, Sharded, WeightTable
from pipelines.loading.encoding import Matrix
from pipelines.loading.weight_spec import WeightSource


def matmul(x_TI: TensorValue, matrix: Matrix) -> TensorValue:
    """Computes x [T, in] @ matrix [out, in].T -> [T, out]."""
    return matrix.encoding.matmul(x_TI, matrix)


def column_parallel(
    weights: WeightTable, x: Replicated, name: str, sources: Sequence[WeightSource], bias: bool = False
) -> Sharded:
    """Multiplies x [T, in] by stacked matrices [out, in]; each device computes its share of every matrix's outputs.

    Args:
        weights: The weights of the graph.
        x: The activations.
        name: Name of the weight in the graph, without `.weight`.
        sources: The matrices, cut along their outputs.
        bias: Whether each matrix has a bias.
    """
    matrices = weights.matrices(f"{name}.weight", sources)
    y = [matmul(shard, matrix) for shard, matrix in zip(x, matrices, strict=True)]
    if bias:
        biases = weights.stacked(f"{name}.bias", [source.bias() for source in sources])
        y = [shard + b for shard, b in zip(y, biases, strict=True)]
    return Sharded(y)


def row_parallel(weights: WeightTable, x: Sharded, source: WeightSource, bias: bool = False) -> Partial:
    """Multiplies each device's x [T, in / devices] by its columns of a matrix [out, in]; the sum is the product.

    The bias is added once, on the first device.
    """
    matrices = weights.matrices(source.name, [source])
    y = [matmul(shard, matrix) for shard, matrix in zip(x, matrices, strict=True)]
    if bias:
        y[0] = y[0] + weights.on_first_device(source.bias().name, source.shape[:1])
    return Partial(y)
