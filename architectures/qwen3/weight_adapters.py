"""Qwen 3 checkpoint tensors -> graph weights."""

from __future__ import annotations

import re
from typing import Any

from max.graph import Shape
from max.graph.weights import WeightData

from architectures.decoder.weight_adapters import StateDict, adapt_text

STACKED = re.compile(r"(layers\.\d+\.mlp\.experts)\.(gate_up|down)_proj")
"""Names of experts in one tensor, [E, 2 F, D] and [E, D, F], as transformers 5 has them in memory."""


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
