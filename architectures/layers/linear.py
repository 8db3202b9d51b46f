"""Matrix products with weights: the one place where a weight's encoding decides how it is multiplied."""

from __future__ import annotations

from collections.abc import Sequence

from max.dtype import DType
from max.graph import TensorType, TensorValue, ops

from architectures.layers.float8 import float8_matmul
from architectures.layers.weights import Float8Matrix, Matrix, Part, Shards, WeightTable


def matmul(x_TI: TensorValue, weight_OI: Matrix) -> TensorValue:
    """x [T, in] @ weight [out, in].T -> [T, out].

    On the CPU a kernel of ours multiplies float32 with weights in float32 or bfloat16.
    """
    if isinstance(weight_OI, Float8Matrix):
        return float8_matmul(x_TI, weight_OI)
    if not x_TI.device.is_cpu():
        return ops.matmul(x_TI, ops.transpose(weight_OI, 0, 1))
    y_TO = TensorType(DType.float32, [x_TI.shape[0], weight_OI.shape[0]], x_TI.device)
    return ops.custom("graph_pipelines.matmul", x_TI.device, [x_TI, weight_OI], [y_TO])[0].tensor


def column_parallel(
    weights: WeightTable, x: Shards, name: str, parts: Sequence[Part], in_features: int, bias: bool = False
) -> Shards:
    """x [T, in] times the stacked parts: each device gives its share of every part, [T, out / devices].

    The parts name the matrices without their suffix: `.weight` and `.bias` follow.
    """

    def suffixed(suffix: str) -> list[Part]:
        return [Part(f"{part.name}.{suffix}", part.size, part.units) for part in parts]

    matrices = weights.columns(f"{name}.weight", suffixed("weight"), in_features)
    y = [matmul(shard, matrix) for shard, matrix in zip(x, matrices, strict=True)]
    if bias:
        y = [shard + b for shard, b in zip(y, weights.stacked(f"{name}.bias", suffixed("bias")), strict=True)]
    return y


def row_parallel(weights: WeightTable, x: Shards, in_features: Part, out_features: int, bias: bool = False) -> Shards:
    """Each device's x [T, in / devices] times its columns of the matrix [out, in]: parts whose sum is the product.

    in_features: the matrix's name without `.weight`, and how its columns may be cut. The bias is added once, on the
    first device.
    """
    part = Part(f"{in_features.name}.weight", in_features.size, in_features.units)
    matrices = weights.rows(part.name, [part], out_features)
    y = [matmul(shard, matrix) for shard, matrix in zip(x, matrices, strict=True)]
    if bias:
        y[0] = y[0] + weights.first(f"{in_features.name}.bias", [out_features])
    return y
