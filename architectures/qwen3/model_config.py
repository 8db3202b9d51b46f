"""Qwen 3, dense (0.6B to 32B) and with experts (30B-A3B): what the graph needs to know.

Source: transformers' configuration_qwen3.py and configuration_qwen3_moe.py, whose names these are.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar

from max.graph import Shape
from max.graph.weights import WeightData

from architectures.decoder.config import ENCODINGS, DecoderConfig, Encodings
from pipelines.loading.float8 import ENCODING as FLOAT8_ENCODING


@dataclass(frozen=True)
class Experts:
    """The feed-forward blocks of a layer with experts."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool


@dataclass(kw_only=True)
class Qwen3Config(DecoderConfig):
    """One Qwen 3 on the devices of one run.

    experts: what sparse layers have. sparse_layers: which layers those are; none in a dense model.
    """

    encodings: ClassVar[Encodings] = {kind: (*names, FLOAT8_ENCODING) for kind, names in ENCODINGS.items()}

    experts: Experts | None
    sparse_layers: frozenset[int]

    @classmethod
    def own_fields(cls, text: Any) -> dict[str, Any]:
        if text.model_type != "qwen3_moe":
            return {"experts": None, "sparse_layers": frozenset()}
        experts = Experts(
            text.num_experts, text.num_experts_per_tok, text.moe_intermediate_size, bool(text.norm_topk_prob)
        )
        sparse = {
            layer
            for layer in range(text.num_hidden_layers)
            if layer not in text.mlp_only_layers and (layer + 1) % text.decoder_sparse_step == 0
        }
        return {"experts": experts, "sparse_layers": frozenset(sparse if experts.num_experts else ())}

    def read_weights(self, state_dict: MutableMapping[str, WeightData]) -> None:
        """Experts that a checkpoint keeps in one tensor become one tensor each."""
        for layer in self.sparse_layers:
            _unstack_experts(state_dict, f"layers.{layer}.mlp.experts", self.experts)


def _unstack_experts(state_dict: MutableMapping[str, WeightData], name: str, experts: Experts | None) -> None:
    """[E, 2 F, D] and [E, D, F], as transformers 5 has them in memory, under the names that the hub's files use."""
    gate_up, down = state_dict.pop(f"{name}.gate_up_proj", None), state_dict.pop(f"{name}.down_proj", None)
    if experts is None or gate_up is None or down is None:
        return
    size = experts.moe_intermediate_size
    for expert in range(experts.num_experts):
        halves = {"gate": slice(0, size), "up": slice(size, 2 * size)}
        for part, rows in halves.items():
            state_dict[f"{name}.{expert}.{part}_proj.weight"] = _view(gate_up, (expert, rows))
        state_dict[f"{name}.{expert}.down_proj.weight"] = _view(down, (expert,))


def _view(data: WeightData, index: tuple[int | slice, ...]) -> WeightData:
    """A part of a tensor, which is not copied; without data, as while shapes are checked, its shape alone."""
    shape = [int(dim) for dim in data.shape][1:]
    if len(index) > 1 and isinstance(index[1], slice):
        shape[0] = index[1].stop - index[1].start
    array = None if data.data is None else data.data[index]  # type: ignore[index]
    return WeightData(array, data.name, data.dtype, Shape(shape))  # type: ignore[arg-type]
