"""The graphs compile for GPUs, collectives and kernels included, on a machine that has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpu_graphs import CASES, IN_SUITE, Case
from published import SUPPORTED, architecture_of


@pytest.mark.gpu_compile
@pytest.mark.parametrize("case", IN_SUITE, ids=lambda case: case.id)
def test_graphs_compile_for_gpus_with_all_inputs_and_weights(case: Case, tmp_path: Path) -> None:
    compiled = case.compile(tmp_path)
    assert [graph["graph"] for graph in compiled] == [*case.graphs]
    for graph in compiled:
        gpus = [[kind, number] for kind, number in graph["declared"]["devices"] if kind == "gpu"]
        assert gpus == [["gpu", number] for number in range(case.num_devices)]
        assert graph["compiled"]["num_inputs"] == graph["declared"]["num_inputs"] > 0
        assert graph["compiled"]["weights"] == graph["declared"]["weights"]
        assert graph["compiled"]["devices"] == sorted([["cpu", 0], *gpus])


def test_every_family_has_graphs_for_one_two_and_eight_gpus_and_a_published_shape() -> None:
    """Those that are not in the suite are compiled by `python tests/support/gpu_graphs.py`."""
    cases = list(CASES.values())
    published = {case.model: set[int]() for case in cases if case.model in SUPPORTED}
    for case in cases:
        if case.model in published:
            published[case.model].add(case.num_devices)
    families = {architecture_of(SUPPORTED[name]).pipeline_model for name, counts in published.items() if 8 in counts}
    assert families >= {architecture_of(folder).pipeline_model for folder in SUPPORTED.values()} - GEMMA_3_TEXT
    for name in ("gemma3", "gemma3_multimodal_for_gpus", "gemma4", "llama3", "qwen3", "qwen3_moe"):
        assert {case.num_devices for case in cases if case.model == name} >= {1, 2, 8}, name


GEMMA_3_TEXT = {architecture_of(SUPPORTED["google__gemma-3-1b-it"]).pipeline_model}
"""Its published sizes have 4 heads, which eight GPUs can't share; the text model of the 4B is the same graph."""
