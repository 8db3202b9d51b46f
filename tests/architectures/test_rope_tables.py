"""RoPE tables are as long as the requests of the run need."""

from __future__ import annotations

import numpy as np
import pytest
from max.driver import CPU
from published import FOLDERS, configured

from architectures.decoder.rope_tables import MIN_POSITIONS, RopeTables


def test_tables_grow_with_the_positions_and_keep_their_rows() -> None:
    config = configured(FOLDERS["google__gemma-4-31B-it"], "cpu", "auto", {})
    tables = RopeTables(config, [CPU()], config.max_position_embeddings)
    for num_positions, length in ((1, MIN_POSITIONS), (MIN_POSITIONS, MIN_POSITIONS), (MIN_POSITIONS + 1, 8192)):
        placed = tables.up_to(num_positions)
        for layer_type, rope in config.rope_parameters.items():
            (table,) = placed[layer_type]
            width = config.rope_dims[layer_type]
            assert list(table.shape) == [length, width]
            assert np.array_equal(table.to_numpy(), rope.table(length, width))
    assert tables.up_to(5)["full_attention"] is tables.up_to(8192)["full_attention"]


def test_tables_end_at_the_limit_of_the_run() -> None:
    config = configured(FOLDERS["google__gemma-3-1b-it"], "cpu", "auto", {})
    tables = RopeTables(config, [CPU()], 5000)
    assert tables.up_to(4500)["sliding_attention"][0].shape[0] == 5000
    with pytest.raises(ValueError, match="position 5000 is beyond the limit of 5000"):
        tables.up_to(5001)
