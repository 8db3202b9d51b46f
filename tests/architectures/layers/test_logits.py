"""Which positions become logits, in each of the three modes."""

from __future__ import annotations

import numpy as np
import pytest
from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType

from architectures.layers.logits import last_of_each_row, select_positions
from pipelines.pipeline_model import ReturnLogits

MODES = (ReturnLogits.LAST_TOKEN, ReturnLogits.VARIABLE, ReturnLogits.ALL)


@pytest.mark.compiles
def test_each_mode_selects_its_positions() -> None:
    device = DeviceRef.CPU()
    types = [
        TensorType(DType.float32, ["tokens", 1], device),
        TensorType(DType.uint32, ["offsets"], device),
        TensorType(DType.int64, [1], device),
    ]
    with Graph("positions", input_types=types) as graph:
        h, offsets, count = (value.tensor for value in graph.inputs)
        selected = [select_positions(h, offsets, count, mode) for mode in MODES]
        graph.output(*(out for h, ends in selected for out in (h, ends, last_of_each_row(h, ends))))
    model = InferenceSession(devices=[CPU()]).load(graph)

    # Rows of 1, 4 and 2 tokens, whose hidden state is their number; the last 3 of each are wanted.
    tokens = np.arange(7, dtype=np.float32)[:, None]
    results = model.execute(tokens, np.array([0, 1, 5, 7], np.uint32), np.array([3], np.int64))
    numbers = [result.to_numpy().reshape(-1).tolist() for result in results]
    last = [0, 4, 6]
    assert numbers[0:3] == [last, [0, 1, 2, 3], last]
    assert numbers[3:6] == [[0, 0, 0, 2, 3, 4, 5, 5, 6], [0, 3, 6, 9], last]
    assert numbers[6:9] == [list(range(7)), [0, 1, 5, 7], last]
