"""Compiling the graphs of a model into a folder, from which `Artifacts` reads them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from max.engine import InferenceSession

from pipelines.errors import InputError
from pipelines.loading.artifacts.artifacts import GRAPH_SUFFIX, LIBRARY_SUFFIX
from pipelines.loading.artifacts.manifest import MANIFEST_NAME, FileRecord, GraphRecord, Manifest
from pipelines.loading.artifacts.target import cpu_features
from pipelines.loading.graphs import TracedGraphs
from pipelines.native.library import LIBRARIES, library_file
from pipelines.stages import Stages


def check_output(output: Path) -> None:
    """Checks that a folder may be written: that it is not there, empty, or holds compiled graphs, which are replaced.

    Raises:
        InputError: There is a file, or a folder that holds something else.
    """
    is_empty = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not is_empty and not (output / MANIFEST_NAME).is_file():
        raise InputError(f"output (--output) {output} holds something else: give another folder")


def write_artifacts(
    graphs: TracedGraphs, run: Mapping[str, str], session: InferenceSession, output: Path, stages: Stages
) -> Manifest:
    """Compiles graphs into a folder, which appears when all are there; a failure leaves what was there.

    Args:
        graphs: All graphs of the model.
        run: What they follow from.
        session: That of their devices.
        output: The folder, as `check_output` wants it.
        stages: Receives reports about the stages.

    Raises:
        InputError: The folder can't be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent) as temporary:
            made = Path(temporary) / "artifacts"
            made.mkdir()
            compiled, libraries = _compile(graphs, session, made, stages), _copy_libraries(made, stages)
            manifest = Manifest(run, cpu_features(), compiled, libraries)
            manifest.write(made)
            if output.exists():
                shutil.rmtree(output)
            made.rename(output)
    except OSError as error:
        raise InputError(f"can't write output (--output) {output}: {error.strerror or error}") from None
    return manifest


def _compile(graphs: TracedGraphs, session: InferenceSession, folder: Path, stages: Stages) -> dict[str, GraphRecord]:
    records = {}
    for name in graphs.names:
        file = folder / f"{name}{GRAPH_SUFFIX}"
        with stages.stage("compile", name.replace("_", " ")):
            graphs.compile_async(name, session).export_mef(file)  # which waits for it
        records[name] = GraphRecord(FileRecord.of(file), tuple(graphs.weights(name)))
    return records


def _copy_libraries(folder: Path, stages: Stages) -> dict[str, FileRecord]:
    """Copies the libraries of the host's own code, which a start would have to compile too."""
    with stages.stage("libraries"):
        files = {name: shutil.copyfile(library_file(name), folder / f"{name}{LIBRARY_SUFFIX}") for name in LIBRARIES}
    return {name: FileRecord.of(file) for name, file in files.items()}
