"""A feed-forward block of experts, of which a router chooses a few for each token."""

from __future__ import annotations

from dataclasses import dataclass

from max.dtype import DType
from max.graph import TensorType, TensorValue, ops
from max.nn.kernels import grouped_matmul_ragged, moe_create_indices

from architectures.layers.float8 import float8_grouped_matmul
from architectures.layers.linear import matmul
from architectures.layers.mlp import ACTIVATIONS
from architectures.layers.weights import Float8Matrix, Matrix, Part, Shards, WeightTable


@dataclass(frozen=True)
class MixtureOfExperts:
    """Gated feed-forward blocks of the same shape.

    size: the width of one expert. num_chosen: experts that a token is sent to. normalizes: whether their weights are
    scaled to sum to 1.
    """

    hidden_size: int
    size: int
    num_experts: int
    num_chosen: int
    normalizes: bool
    activation: str

    def __call__(self, weights: WeightTable, x: Shards, name: str) -> Shards:
        """x [T, D] -> [T, D]: parts, to be summed over the devices. Each device has a share of every expert."""
        experts = range(self.num_experts)
        ups = [f"{name}.experts.{i}.{part}_proj.weight" for i in experts for part in ("gate", "up")]
        gate_up = weights.columns(
            f"{name}.experts.gate_up_proj", [Part(up, self.size, self.size) for up in ups], self.hidden_size
        )
        downs = [f"{name}.experts.{i}.down_proj.weight" for i in experts]
        down = weights.rows(
            f"{name}.experts.down_proj", [Part(down, self.size, self.size) for down in downs], self.hidden_size
        )
        router = weights.copies(f"{name}.gate.weight", [self.num_experts, self.hidden_size])
        return [self._one_device(*shards) for shards in zip(x, router, gate_up, down, strict=True)]

    def _one_device(self, x_TD: TensorValue, router: TensorValue, gate_up: Matrix, down: Matrix) -> TensorValue:
        scores, chosen = self._route(x_TD, router)
        products = _RowsOfExperts(chosen, self.num_experts)
        gate, up = _halves(products.matmul(products.spread(x_TD), gate_up))
        y_RD = products.collect(products.matmul(ACTIVATIONS[self.activation](gate) * up, down))
        y_TKD = y_RD.reshape((x_TD.shape[0], self.num_chosen, self.hidden_size))
        weighted = y_TKD * ops.unsqueeze(ops.cast(scores, x_TD.dtype), -1)
        return ops.squeeze(ops.sum(weighted, axis=1), 1)

    def _route(self, x_TD: TensorValue, router: TensorValue) -> tuple[TensorValue, TensorValue]:
        """Each token's experts [T, chosen] int32, and their weights, float32."""
        probabilities = ops.softmax(ops.cast(matmul(x_TD, router), DType.float32), axis=-1)
        scores, chosen = ops.top_k(probabilities, self.num_chosen, axis=-1)
        if self.normalizes:
            scores = scores / ops.sum(scores, axis=-1)
        return scores, ops.cast(chosen, DType.int32)


class _RowsOfExperts:
    """R = T * chosen rows, each with its expert. On GPU they are sorted by expert, on CPU the kernel does that."""

    def __init__(self, chosen: TensorValue, num_experts: int) -> None:
        self.experts_R, self.num_experts, self.num_chosen = chosen.reshape((-1,)), num_experts, int(chosen.shape[1])
        if not chosen.device.is_cpu():
            self.order, self.starts, self.restore, self.ids, self.usage = moe_create_indices(
                self.experts_R, num_experts
            )

    def spread(self, x_TD: TensorValue) -> TensorValue:
        """The tokens' values as `matmul` takes them."""
        if x_TD.device.is_cpu():
            return x_TD
        return ops.gather(x_TD, ops.cast(self.order // self.num_chosen, DType.int32), axis=0)

    def matmul(self, x: TensorValue, weight: Matrix) -> TensorValue:
        """Each row times its expert's matrix, of those that are stacked in weight [E * out, in]: [R, out]."""
        if isinstance(weight, Float8Matrix):
            return float8_grouped_matmul(x, weight, self.num_experts, self.starts, self.ids, self.usage)
        out = int(weight.shape[0]) // self.num_experts
        if not x.device.is_cpu():
            stacked = weight.reshape((self.num_experts, out, weight.shape[1]))
            return grouped_matmul_ragged(x, stacked, self.starts, self.ids, self.usage)
        y = TensorType(DType.float32, [self.experts_R.shape[0], out], x.device)
        return ops.custom("graph_pipelines.expert_matmul", x.device, [x, weight, self.experts_R], [y])[0].tensor

    def collect(self, y_RD: TensorValue) -> TensorValue:
        """Rows in the order of the tokens."""
        return y_RD if y_RD.device.is_cpu() else ops.gather(y_RD, self.restore, axis=0)


def _halves(x: TensorValue) -> tuple[TensorValue, TensorValue]:
    half = int(x.shape[1]) // 2
    return x[:, :half], x[:, half:]
