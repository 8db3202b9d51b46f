"""Bidirectional attention between the patches of an image."""

from __future__ import annotations

from max.dtype import DType
from max.graph import DeviceRef, TensorValue, ops
from max.nn.attention import MHAMaskVariant
from max.nn.kernels import flash_attention_gpu


def image_attention(q_IPNH: TensorValue, k_IPNH: TensorValue, v_IPNH: TensorValue, scale: float) -> TensorValue:
    """Computes softmax(q @ k.T * scale) @ v for each head of each image: [images I, patches P, heads N, head dim H].

    The scores of all heads are never in memory at once. On CPU our own kernel computes in float32.
    """
    if not q_IPNH.device.is_cpu():
        return flash_attention_gpu(q_IPNH, k_IPNH, v_IPNH, MHAMaskVariant.NULL_MASK, scale)
    values = [q_IPNH, k_IPNH, v_IPNH, ops.constant(scale, DType.float32, DeviceRef.CPU())]
    return ops.custom("graph_pipelines.image_attention", q_IPNH.device, values, [q_IPNH.type])[0].tensor
