"""Graphs that an earlier start compiled, kept in the user's cache folder so that the next one need not trace them.

MAX keeps what it compiles too, but finds it by the traced graph, and tracing is most of a start.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from max.engine import CompiledModel, InferenceSession

from pipelines.errors import InputError
from pipelines.loading.artifacts.artifacts import GRAPH_SUFFIX, Artifacts
from pipelines.loading.artifacts.manifest import FileRecord, GraphRecord, Manifest
from pipelines.loading.artifacts.target import cpu_features
from pipelines.loading.graphs import TracedGraphs
from pipelines.loading.weight_cache.files import folders_in, remove
from pipelines.loading.weight_spec import TracedGraph, WeightSpec
from pipelines.stages import Stages

MAX_KEPT = 32
"""Runs whose graphs are kept, the most recently used ones. A graph takes some 4 MB."""
KEY_LENGTH = 16


class KeptGraphs:
    """The graphs of a run: those that an earlier start kept, or those that are traced now, and kept for the next.

    They are kept once all graphs of the model are compiled. What is damaged or can't be written is no error.
    """

    def __init__(
        self,
        folder: Path | None,
        run: Mapping[str, str],
        trace: Callable[[], Mapping[str, TracedGraph]],
        stages: Stages,
    ) -> None:
        """Looks for the graphs of a run.

        Args:
            folder: The folder of all kept graphs, which may not exist; None: nothing is kept.
            run: What graphs of this run follow from.
            trace: Traces the graphs.
            stages: Receives reports about the stages.
        """
        self._run, self._trace, self._stages = run, trace, stages
        self._features = cpu_features()
        key = json.dumps([sorted(run.items()), sorted(self._features), sorted(_environment().items())])
        self._entry = None if folder is None else folder / hashlib.sha256(key.encode()).hexdigest()[:KEY_LENGTH]
        self._kept = self._open()
        self._compiled: dict[str, CompiledModel] = {}

    @property
    def names(self) -> Sequence[str]:
        """Names of the graphs."""
        return self._graphs.names

    @property
    def stage(self) -> tuple[str, str]:
        """Name and detail of the stage in which a graph becomes ready to run."""
        return TracedGraphs.stage if self._kept is None else ("load", "graphs that were compiled before")

    def weights(self, name: str) -> Sequence[WeightSpec]:
        """Specifications of a graph's weights."""
        return self._graphs.weights(name)

    def compile_async(self, name: str, session: InferenceSession) -> CompiledModel:
        """Reads a kept graph, or starts its compilation."""
        compiled = self._graphs.compile_async(name, session)
        if self._kept is None:
            self._compiled[name] = compiled
        return compiled

    def keep(self) -> None:
        """Keeps the graphs for the next start, if all of them have been compiled by this one."""
        if self._kept is not None or self._entry is None or self._compiled.keys() != set(self.names):
            return
        compiled, self._compiled = self._compiled, {}
        if self._open() is not None:  # another process was faster
            return
        with suppress(OSError, RuntimeError):  # MAX's error for a file that it can't write
            self._entry.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self._entry.parent) as temporary:
                made = Path(temporary) / "graphs"
                made.mkdir()
                Manifest(self._run, self._features, self._export(compiled, made), {}).write(made)
                if self._entry.exists():  # damaged
                    shutil.rmtree(self._entry)
                made.rename(self._entry)
            _remove_oldest(self._entry.parent)

    @cached_property
    def _graphs(self) -> Artifacts | TracedGraphs:
        if self._kept is not None:
            return self._kept
        with self._stages.stage("graph"):
            return TracedGraphs(self._trace())

    def _open(self) -> Artifacts | None:
        if self._entry is None or not self._entry.is_dir():
            return None
        try:
            kept = Artifacts.open(self._entry, self._run, self._features)
        except InputError:
            return None
        with suppress(OSError):
            os.utime(self._entry)  # the least recently used are removed first
        return kept

    def _export(self, compiled: Mapping[str, CompiledModel], folder: Path) -> dict[str, GraphRecord]:
        records = {}
        for name, graph in compiled.items():
            file = folder / f"{name}{GRAPH_SUFFIX}"
            graph.export_mef(file)
            records[name] = GraphRecord(FileRecord.of(file), tuple(self.weights(name)))
        return records


def _environment() -> dict[str, str]:
    """Settings of MAX, such as assertions in kernels, or another cache, with which a start is meant to compile."""
    return {name: value for name, value in os.environ.items() if name.startswith("MODULAR_")}


def _remove_oldest(folder: Path) -> None:
    entries = [entry for entry in folders_in(folder) if len(entry.path.name) == KEY_LENGTH]  # others are being written
    for entry in entries[:-MAX_KEPT]:
        remove(entry)
