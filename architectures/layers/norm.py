"""Root mean square normalization (https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

from dataclasses import dataclass

from max.graph import TensorValue, ops

from architectures.layers.weights import Replicated, WeightTable


@dataclass(frozen=True)
class RMSNorm:
    """The normalization of a family.

    weight_offset: is added to the weight. multiply_before_cast: whether the product with the weight precedes the cast:
    Gemma 3 multiplies by (1 + weight) in float32 and casts afterwards; Llama and Qwen cast first.
    """

    epsilon: float
    weight_offset: float = 0.0
    multiply_before_cast: bool = False

    def __call__(self, weights: WeightTable, x: Replicated, name: str, size: int) -> Replicated:
        """Normalizes the last axis, of `size`, of each device's x with the weight `name`.weight."""
        replicas = weights.replicated(f"{name}.weight", [size])
        return Replicated([self.apply(shard, weight) for shard, weight in zip(x, replicas, strict=True)])

    def apply(self, x: TensorValue, weight: TensorValue) -> TensorValue:
        """Normalizes the last axis of one device's x with a weight of that size."""
        return ops.rms_norm(x, weight, self.epsilon, self.weight_offset, self.multiply_before_cast)

    def without_weight(self, x: TensorValue, size: int) -> TensorValue:
        """Normalizes the last axis, of `size`, and multiplies by nothing."""
        one = ops.constant(1 - self.weight_offset, x.dtype, x.device)
        return self.apply(x, ops.broadcast_to(one, [size]))
