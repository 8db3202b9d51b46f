"""Compiled graphs in a folder: found, checked against the run, and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from max.engine import CompiledModel, InferenceSession, read

from pipelines.errors import InputError
from pipelines.loading.artifacts.manifest import FileRecord, Manifest, damaged
from pipelines.loading.weight_spec import WeightSpec
from pipelines.native.library import install_library

GRAPH_SUFFIX = ".mef"
LIBRARY_SUFFIX = ".so"


@dataclass(frozen=True)
class Artifacts:
    """The compiled graphs of one model; `open` has checked that they are whole, and fit the run and the machine."""

    folder: Path
    manifest: Manifest

    stage = ("load", "graphs compiled ahead of time")

    @classmethod
    def open(cls, folder: Path, run: Mapping[str, str], cpu_features: frozenset[str]) -> Artifacts:
        """Opens a folder.

        Args:
            folder: As `pipelines compile` has written it.
            run: What graphs of this run follow from.
            cpu_features: The instruction sets of this machine's CPU.

        Raises:
            InputError: It was made for another run or CPU, as the message says; or a file is missing or damaged.
        """
        manifest = Manifest.read(folder)
        differences = _differences(manifest.run, run)
        if missing := sorted(manifest.cpu_features - cpu_features):
            differences.append(f"cpu has no {', '.join(missing)}, which they are compiled with")
        if differences:
            raise InputError(
                f"artifacts (--artifacts) '{folder}' are not of this run: {'; '.join(differences)}: compile them again "
                "with `pipelines compile`, or change the run"
            )
        files = {f"{name}{GRAPH_SUFFIX}": graph.file for name, graph in manifest.graphs.items()}
        files |= {f"{name}{LIBRARY_SUFFIX}": library for name, library in manifest.libraries.items()}
        for name, record in files.items():
            _check_file(folder / name, record)
        return cls(folder, manifest)

    @property
    def names(self) -> Sequence[str]:
        """Names of the graphs."""
        return tuple(self.manifest.graphs)

    def install_libraries(self) -> None:
        """Puts the libraries of the host's own code where they are looked for, so that they need not be compiled.

        Raises:
            InputError: XDG_CACHE_HOME is not writable.
        """
        for name in self.manifest.libraries:
            install_library(name, self.folder / f"{name}{LIBRARY_SUFFIX}")

    def weights(self, name: str) -> Sequence[WeightSpec]:
        """Specifications of a graph's weights."""
        return self.manifest.graphs[name].weights

    def compile_async(self, name: str, session: InferenceSession) -> CompiledModel:
        """Reads a graph, which is compiled already."""
        return read(self.folder / f"{name}{GRAPH_SUFFIX}")

    def keep(self) -> None:
        """Does nothing: they stay where they are."""


def _differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Says of each field that differs what the artifacts have, and what the run needs."""
    return [
        f"{name} is {found.get(name, 'unknown')}, and {expected.get(name, 'unknown')} is needed"
        for name in [*expected, *(name for name in found if name not in expected)]
        if found.get(name) != expected.get(name)
    ]


def _check_file(path: Path, record: FileRecord) -> None:
    """Compares a file with its record.

    Raises:
        InputError: It is missing or damaged.
    """
    try:
        found = FileRecord.of(path)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None
    if found.num_bytes != record.num_bytes:
        raise damaged(path, f"it has {found.num_bytes} bytes, not {record.num_bytes}")
    if found.sha256 != record.sha256:
        raise damaged(path, "its checksum is another")
