"""Mixture of experts: a feed-forward block of experts, of which a router chooses a few for each token."""

from __future__ import annotations

from dataclasses import dataclass

from max.dtype import DType
from max.graph import TensorValue, ops
from max.nn.kernels import moe_create_indices

from architectures.layers.activations import gated
from architectures.layers.linear import matmul
from architectures.layers.weights import Partial, Replicated, WeightTable
from pipelines.loading.encoding import ExpertRows, Matrix
from pipelines.loading.weight_spec import WeightSource


@dataclass(frozen=True)
class MixtureOfExperts:
    """A mixture of gated feed-forward blocks of the same shape.

    size: the width of one expert. num_experts_per_tok: experts to which a token is dispatched. norm_topk_prob: whether
    their weights are scaled to sum to 1.
    """

    hidden_size: int
    size: int
    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool
    activation: str

    def __call__(self, weights: WeightTable, x: Replicated, name: str) -> Partial:
        """Applies the experts: x [T, D] -> [T, D], to be summed over the devices, each with a share of every expert."""
        size, hidden, experts = self.size, self.hidden_size, [f"{name}.experts.{i}" for i in range(self.num_experts)]
        ups = [f"{expert}.{part}_proj.weight" for expert in experts for part in ("gate", "up")]
        gate_up = weights.matrices(
            f"{name}.experts.gate_up_proj", [WeightSource(up, (size, hidden), axis=0, units=size) for up in ups]
        )
        downs = [f"{expert}.down_proj.weight" for expert in experts]
        down = weights.matrices(
            f"{name}.experts.down_proj", [WeightSource(d, (hidden, size), axis=1, units=size) for d in downs]
        )
        router = weights.replicated_matrices(f"{name}.gate.weight", (self.num_experts, hidden))
        return Partial([self._one_device(*shards) for shards in zip(x, router, gate_up, down, strict=True)])

    def _one_device(self, x_TD: TensorValue, router: Matrix, gate_up: Matrix, down: Matrix) -> TensorValue:
        scores, chosen = self._route(x_TD, router)
        experts = _Dispatch(chosen, self.num_experts)
        gate_up_RF = experts.matmul(experts.dispatch(x_TD), gate_up)
        y_RD = experts.combine(experts.matmul(gated(gate_up_RF, self.activation), down))
        y_TKD = y_RD.reshape((x_TD.shape[0], self.num_experts_per_tok, self.hidden_size))
        weighted = y_TKD * ops.unsqueeze(ops.cast(scores, x_TD.dtype), -1)
        return ops.squeeze(ops.sum(weighted, axis=1), 1)

    def _route(self, x_TD: TensorValue, router: Matrix) -> tuple[TensorValue, TensorValue]:
        """Chooses each token's experts: their weights [T, num_experts_per_tok] float32, and their numbers, int32."""
        probabilities = ops.softmax(ops.cast(matmul(x_TD, router), DType.float32), axis=-1)
        scores, chosen = ops.top_k(probabilities, self.num_experts_per_tok, axis=-1)
        if self.norm_topk_prob:
            scores = scores / ops.sum(scores, axis=-1)
        return scores, ops.cast(chosen, DType.int32)


class _Dispatch:
    """The dispatch of R = T * num_experts_per_tok rows to their experts.

    On GPU the rows are sorted by expert; on CPU the kernel sorts.
    """

    def __init__(self, chosen: TensorValue, num_experts: int) -> None:
        experts_R, self.num_experts_per_tok = chosen.reshape((-1,)), int(chosen.shape[1])
        if chosen.device.is_cpu():
            self.rows = ExpertRows(num_experts, experts_R)
        else:
            self.order, starts, self.restore, ids, usage = moe_create_indices(experts_R, num_experts)
            self.rows = ExpertRows(num_experts, experts_R, starts, ids, usage)

    def dispatch(self, x_TD: TensorValue) -> TensorValue:
        """Arranges the tokens' rows as `matmul` takes them."""
        if x_TD.device.is_cpu():
            return x_TD
        return ops.gather(x_TD, ops.cast(self.order // self.num_experts_per_tok, DType.int32), axis=0)

    def matmul(self, x: TensorValue, matrix: Matrix) -> TensorValue:
        """Multiplies each row by its expert's matrix, of those that are stacked in [E * out, in]: [R, out]."""
        return matrix.encoding.expert_matmul(x, matrix, self.rows)

    def combine(self, y_RD: TensorValue) -> TensorValue:
        """Restores the order of the tokens."""
        return y_RD if y_RD.device.is_cpu() else ops.gather(y_RD, self.restore, axis=0)
