"""The `pipelines compile` command: all graphs of a model, for this machine or for GPUs that it does not have."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kv_cache import format_bytes
from pipelines.commands.progress import console_stages
from pipelines.config import PipelineConfig
from pipelines.errors import InputError
from pipelines.loading.artifacts.artifacts import GRAPH_SUFFIX, LIBRARY_SUFFIX
from pipelines.loading.artifacts.manifest import MANIFEST_NAME, FileRecord, GraphRecord, Manifest
from pipelines.loading.artifacts.target import CPU_TARGET, cpu_features, set_target
from pipelines.loading.graphs import TracedGraphs
from pipelines.loading.weights import check_weights
from pipelines.native.library import LIBRARIES, library_file
from pipelines.opened_model import OpenedModel
from pipelines.stages import Stages

if TYPE_CHECKING:
    from max.engine import InferenceSession


def compile_from_console(config: PipelineConfig, target: str | None, output: Path) -> None:
    """Compiles all graphs of a model into a folder, and prints what it holds.

    Args:
        config: The run that they are for.
        target: GPUs that this machine need not have, "cuda:sm_90a"; None: the devices of this machine.
        output: The folder, which is made, or replaced if it holds compiled graphs.

    Raises:
        InputError: The model can't be loaded with this configuration, the target is none of the devices', or the folder
            holds something else or can't be written.
    """
    stages = console_stages(sys.stderr)
    _check_output(output)
    if target is not None:
        _set_target(config, target)
    manifest = compile_model(OpenedModel.open(config, stages), output, stages)
    for name, graph in manifest.graphs.items():
        print(f"{output / name}{GRAPH_SUFFIX}  {format_bytes(graph.file.num_bytes)}")
    print(f"for {manifest.run['devices']}, {manifest.run['target']}, {manifest.run['quantization_encoding']}")


def compile_model(opened: OpenedModel, output: Path, stages: Stages) -> Manifest:
    """Traces and compiles all graphs of a model into a folder. No value of its weights is read.

    Raises:
        InputError: A tensor is missing, misshapen or unexpected, or the folder can't be written.
    """
    from max.engine import InferenceSession

    with stages.stage("graph"):
        model, huggingface_config = opened.architecture.pipeline_model, opened.checkpoint.huggingface_config
        graphs = TracedGraphs(model.trace(opened.config, huggingface_config, opened.state_dict))
    check_weights([spec for name in graphs.names for spec in graphs.weights(name)], opened.state_dict)
    session = InferenceSession(devices=opened.devices)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent) as temporary:  # a compilation that fails leaves what was there
            made = Path(temporary) / "artifacts"
            made.mkdir()
            manifest = Manifest(
                opened.identity, cpu_features(), _compile(graphs, session, made, stages), _copy_libraries(made, stages)
            )
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


def _copy_libraries(folder: Path, stages: Stages) -> Mapping[str, FileRecord]:
    """Copies the libraries of the host's own code, which a start would have to compile too."""
    with stages.stage("libraries"):
        files = {name: shutil.copyfile(library_file(name), folder / f"{name}{LIBRARY_SUFFIX}") for name in LIBRARIES}
    return {name: FileRecord.of(file) for name, file in files.items()}


def _set_target(config: PipelineConfig, target: str) -> None:
    """Sets the target of this process.

    Raises:
        InputError: It is none, or not one of the run's devices.
    """
    if (target == CPU_TARGET) != (config.device_kind == "cpu"):
        raise InputError(
            f"target (--target) is '{target}' and devices (--devices) is '{config.devices}': name devices of the target"
        )
    if target != CPU_TARGET:
        set_target(target, max(ref.id for ref in config.device_refs) + 1)


def _check_output(output: Path) -> None:
    """Checks that nothing else would be overwritten.

    Raises:
        InputError: There is a file or a folder that holds something else.
    """
    if (
        output.exists()
        and not (output / MANIFEST_NAME).is_file()
        and not (output.is_dir() and not any(output.iterdir()))
    ):
        raise InputError(f"output (--output) {output} holds something else: give another folder")
