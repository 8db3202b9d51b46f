"""The `pipelines compile` command: all graphs of a model, for this machine or for GPUs that it does not have."""

from __future__ import annotations

import sys
from pathlib import Path

from kv_cache import format_bytes
from pipelines.commands.progress import console_stages
from pipelines.config import PipelineConfig
from pipelines.errors import InputError
from pipelines.loading.artifacts.artifacts import GRAPH_SUFFIX
from pipelines.loading.artifacts.manifest import Manifest
from pipelines.loading.artifacts.target import CPU_TARGET, set_target
from pipelines.loading.artifacts.write import check_output, write_artifacts
from pipelines.loading.graphs import TracedGraphs
from pipelines.loading.weights import check_weights
from pipelines.opened_model import OpenedModel
from pipelines.stages import Stages
from pipelines.without_torch import import_transformers_without_torch


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
    check_output(output)
    if target is not None:
        _set_target(config, target)
    import_transformers_without_torch(config)
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
        graphs = TracedGraphs(opened.trace())
    check_weights([spec for name in graphs.names for spec in graphs.weights(name)], opened.state_dict)
    return write_artifacts(graphs, opened.identity, InferenceSession(devices=opened.devices), output, stages)


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
