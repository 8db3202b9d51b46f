"""Graphs that one start compiled are read by the next, unless something that they follow from has changed."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from max.dtype import DType

from pipelines import PipelineConfig
from pipelines import opened_model as opened_model_module
from pipelines.loading.artifacts import artifacts, kept
from pipelines.loading.artifacts.kept import KeptGraphs
from pipelines.loading.weight_spec import TracedGraph, WeightSource, WeightSpec
from pipelines.opened_model import OpenedModel
from pipelines.stages import NullStages

RUN = {"config": "1", "max": "26.7.0"}
SPECS = [WeightSpec("norm.weight", DType.float32, (WeightSource("norm.weight", (8,)),))]


@dataclass
class Compiled:
    """A compiled graph, which is a text."""

    text: str
    num_exports: int = 0

    def export_mef(self, path: Path) -> None:
        self.num_exports += 1
        path.write_text(self.text)


@dataclass
class Machine:
    """A session that compiles without MAX, and the traces that were made."""

    folder: Path | None
    num_traced: int = 0
    num_compiled: int = 0
    stages: NullStages = field(default_factory=NullStages)

    def compile_async(self, graph: Any) -> Compiled:
        self.num_compiled += 1
        return Compiled(f"code {self.num_compiled}")

    def trace(self) -> dict[str, TracedGraph]:
        self.num_traced += 1
        return {name: TracedGraph(nullcontext(), SPECS) for name in ("decoder", "vision_tower")}  # type: ignore[arg-type]

    def start(self, *names: str, **run: str) -> list[str]:
        """Starts a model that compiles the graphs of these names, all of them by default; returns their code."""
        graphs = KeptGraphs(self.folder, RUN | run, self.trace, self.stages)
        assert tuple(graphs.names) == ("decoder", "vision_tower") and list(graphs.weights("decoder")) == SPECS
        compiled: list[Any] = []
        for name in names or graphs.names:
            compiled.append(graphs.compile_async(name, self))  # type: ignore[arg-type]
            graphs.keep()
        for _ in range(3):  # as each request does
            graphs.keep()
        assert all(model.num_exports <= 1 for model in compiled)
        return [model.text for model in compiled]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(artifacts, "read", lambda path: Compiled(path.read_text()))
    return Machine(tmp_path / "cache" / "graphs")


def entries(machine: Machine) -> list[Path]:
    assert machine.folder is not None
    return list(machine.folder.iterdir())


def test_the_second_start_reads_what_the_first_one_compiled(machine: Machine) -> None:
    assert machine.start() == ["code 1", "code 2"] == machine.start() == machine.start()
    assert (machine.num_traced, machine.num_compiled) == (1, 2)
    assert [name for name, _ in machine.stages.timings] == ["graph"]
    assert machine.start("vision_tower") == ["code 2"]
    (entry,) = entries(machine)
    assert {path.name for path in entry.iterdir()} == {"manifest.json", "decoder.mef", "vision_tower.mef"}


def test_a_start_that_compiled_only_some_keeps_nothing(machine: Machine) -> None:
    assert [machine.start("decoder"), machine.start("decoder")] == [["code 1"], ["code 2"]]
    assert machine.folder is not None and not machine.folder.exists()


@pytest.mark.parametrize("name", ["manifest.json", "decoder.mef", "vision_tower.mef"])
def test_what_is_damaged_is_compiled_again_and_replaced(machine: Machine, name: str) -> None:
    machine.start()
    (entry,) = entries(machine)
    (entry / name).write_text("nothing")
    assert machine.start() == ["code 3", "code 4"] == machine.start()
    assert entries(machine) == [entry]


def test_another_run_and_other_settings_of_max_have_entries_of_their_own(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.start() != machine.start(config="2")
    monkeypatch.setenv("MODULAR_CACHE_DIR", "/tmp/another")
    assert machine.start() == ["code 5", "code 6"]
    monkeypatch.setattr(kept, "cpu_features", lambda: frozenset({"avx1024"}))
    assert machine.start() == ["code 7", "code 8"]
    assert len(entries(machine)) == 4


def test_the_least_recently_used_go_first(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_KEPT", 2)
    for age_s, config in ((300, "1"), (200, "2")):
        machine.start(config=config)
        newest = max(entries(machine), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (time.time() - age_s,) * 2)
    assert machine.start(config="1") == ["code 1", "code 2"]
    machine.start(config="3")
    assert machine.start(config="1") == ["code 1", "code 2"]
    assert machine.start(config="2") == ["code 7", "code 8"]


def test_a_file_that_max_cant_write_leaves_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(Compiled, "export_mef", fail)
    assert machine.start() == ["code 1", "code 2"]
    assert entries(machine) == []


def test_without_a_folder_that_can_be_written_nothing_is_kept_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (None, tmp_path / "file" / "graphs"):
        machine = Machine(folder)
        assert [machine.start(), machine.start()] == [["code 1", "code 2"], ["code 3", "code 4"]]


@pytest.mark.parametrize(
    "settings", [{"custom_architectures": ("architectures.gemma3.arch",)}, {"trust_remote_code": True}]
)
def test_graphs_by_code_of_others_are_not_kept(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened_model_module, "KeptGraphs", lambda folder, *_: folder)
    assert OpenedModel.open(PipelineConfig(), NullStages()).open_graphs(NullStages()) is not None
    assert OpenedModel.open(PipelineConfig(**settings), NullStages()).open_graphs(NullStages()) is None
