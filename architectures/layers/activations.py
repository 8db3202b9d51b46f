"""Activation functions, as exact as torch's.

The error of MAX's tanh on CPU is 2.3e-7, that of torch's 3.2e-8, and for very negative arguments 1 + tanh cancels. So
GeLU and soft-capping are written with the sigmoid, whose exponential is as exact as torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from max.dtype import DType
from max.graph import TensorValue, ops

Activation = Callable[[TensorValue], TensorValue]


def gelu_tanh(x: TensorValue) -> TensorValue:
    """Computes x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), as x sigmoid(2 u); always in float32."""
    exact = ops.cast(x, DType.float32)
    gate = ops.sigmoid(exact * (1.0 + exact * exact * 0.044715) * (2.0 * math.sqrt(2.0 / math.pi)))
    return ops.cast(exact * gate, x.dtype)


def soft_cap(x: TensorValue, cap: float) -> TensorValue:
    """Computes cap tanh(x / cap), as cap (2 sigmoid(2 x / cap) - 1)."""
    return (ops.sigmoid(x * (2.0 / cap)) * 2.0 - 1.0) * cap


ACTIVATIONS: Mapping[str, Activation] = {
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu": ops.gelu,
    "silu": ops.silu,
    "relu": ops.relu,
}
"""Activation functions by their names in config.json."""


def gated(x: TensorValue, activation: str) -> TensorValue:
    """Computes activation(gate) * up for x [T, F of gate and F of up]: [T, F].

    Args:
        x: What the projections of gate and up gave.
        activation: Name in `ACTIVATIONS`.
    """
    half = int(x.shape[1]) // 2
    gate, up = ops.split(x, [half, half], axis=1)
    return ACTIVATIONS[activation](gate) * up
