"""Products in float8 on GPU: rows are quantized as they come, with one scale for each run of a block's columns."""

from __future__ import annotations

from max.dtype import DType
from max.graph import DeviceRef, TensorValue
from max.nn.kernels import (
    dynamic_scaled_matmul,
    grouped_dynamic_scaled_fp8_matmul,
    quantize_dynamic_scaled_float8,
)
from max.nn.quant_config import InputScaleSpec, ScaleGranularity, ScaleOrigin, WeightScaleSpec

from architectures.layers.weights import Float8Matrix
from pipelines.loading.float8 import FLOAT8


def float8_matmul(x_TI: TensorValue, weight: Float8Matrix) -> TensorValue:
    """x [T, in] @ weight [out, in].T -> [T, out], in the type of x."""
    specs = _scale_specs(weight)
    quantized, scales = _quantize(x_TI, weight)
    return dynamic_scaled_matmul(quantized, weight.values, scales, weight.scales, *specs, out_type=x_TI.dtype)


def float8_grouped_matmul(
    x_RI: TensorValue,
    weight: Float8Matrix,
    num_experts: int,
    starts: TensorValue,
    expert_ids: TensorValue,
    usage: TensorValue,
) -> TensorValue:
    """Rows, sorted by expert, times their expert's matrix of those that are stacked in weight [E * out, in]."""
    quantized, scales = _quantize(x_RI, weight)
    values, weight_scales = (t.reshape((num_experts, -1, t.shape[1])) for t in (weight.values, weight.scales))
    host_usage = usage.to(DeviceRef.CPU())
    return grouped_dynamic_scaled_fp8_matmul(
        quantized,
        values,
        scales,
        weight_scales,
        starts,
        expert_ids,
        host_usage,
        *_scale_specs(weight),
        out_type=x_RI.dtype,
    )


def _quantize(x: TensorValue, weight: Float8Matrix) -> tuple[TensorValue, TensorValue]:
    return quantize_dynamic_scaled_float8(
        x,
        *_scale_specs(weight),
        group_size_or_per_token=weight.block[1],
        out_type=FLOAT8,
        scales_type=DType.float32,
    )


def _scale_specs(weight: Float8Matrix) -> tuple[InputScaleSpec, WeightScaleSpec]:
    """One scale for a row's columns of a block, one for a block of the weight."""
    rows = InputScaleSpec(ScaleGranularity.BLOCK, ScaleOrigin.DYNAMIC, DType.float32, block_size=(1, weight.block[1]))
    return rows, WeightScaleSpec(ScaleGranularity.BLOCK, DType.float32, weight.block)
