"""Qwen 3 checkpoint tensors -> graph weights."""

from __future__ import annotations

import re
from typing import Any

from max.graph import Shape
from max.graph.weights import WeightData

from architectures.decoder.gguf_weight_adapters import PRE_NORM_NAMES, adapt_gguf_text, expert
from architectures.decoder.weight_adapters import StateDict, adapt_text

STACKED = re.compile(r"(layers\.\d+\.mlp\.experts)\.(gate_up|down)_proj")
"""Names of experts in one tensor, [E, 2 F, D] and [E, D, F], as transformers 5 has them in memory."""

GGUF_LAYER_NAMES = (
    PRE_NORM_NAMES
    | {"ffn_gate_inp": "mlp.gate"}
    | {f"ffn_{part}_exps": f"mlp.experts.{part}_proj" for part in ("gate", "up", "down")}
)
GGUF_EXPERTS = re.compile(r"(layers\.\d+\.mlp\.experts)\.(gate_proj|up_proj|down_proj)\.weight")


def adapt(tensors: StateDict, huggingface_config: Any) -> StateDict:
    """Adapts a checkpoint, dense or with experts: stacked experts become one tensor each, as in the hub's files."""
    adapted: StateDict = {}
    for name, data in adapt_text(tensors, huggingface_config).items():
        match = STACKED.fullmatch(name)
        adapted |= _unstacked(match[1], match[2], data) if match else {name: data}
    return adapted


def _unstacked(name: str, part: str, data: WeightData) -> StateDict:
    num_experts, rows = int(data.shape[0]), int(data.shape[1])
    halves = {"gate": slice(0, rows // 2), "up": slice(rows // 2, rows)}
    cuts = halves if part == "gate_up" else {"down": slice(0, rows)}
    return {
        f"{name}.{expert}.{projection}_proj.weight": _view(data, expert, cut)
        for expert in range(num_experts)
        for projection, cut in cuts.items()
    }


def _view(data: WeightData, expert: int, rows: slice) -> WeightData:
    """View of the rows of one expert; only its shape if there is no data, as while shapes are checked."""
    shape = Shape([rows.stop - rows.start, int(data.shape[2])])
    array = None if data.data is None else data.data[expert, rows]  # type: ignore[index]
    return WeightData(array, data.name, data.dtype, shape)  # type: ignore[arg-type]


def adapt_gguf(tensors: StateDict, huggingface_config: Any) -> StateDict:
    """Adapts the tensors of a GGUF file, dense or with experts, which are stacked in [E, F, D] and [E, D, F]."""
    adapted: StateDict = {}
    for name, data in adapt_gguf_text(tensors, huggingface_config, GGUF_LAYER_NAMES).items():
        if match := GGUF_EXPERTS.fullmatch(name):
            for number in range(int(data.shape[0])):
                adapted[f"{match[1]}.{number}.{match[2]}.weight"] = expert(data, number)
        else:
            adapted[name] = data
    return adapted
