"""Compiles graphs for GPUs that are not there: `compile_for_gpus.py CHECKPOINT DEVICES ENCODING [GRAPH ...]`.

Nothing is executed. A process of its own, since virtual devices must be set before any device is opened. Prints a JSON
line for each graph: the devices of its inputs, as declared and as the compiled artifact has them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from max.driver import set_virtual_device_api, set_virtual_device_count, set_virtual_device_target_arch

set_virtual_device_api("cuda")
set_virtual_device_target_arch("sm_90a")
set_virtual_device_count(2)

from max.driver import Accelerator  # noqa: E402
from max.engine import InferenceSession  # noqa: E402
from max.graph import Graph  # noqa: E402

from pipelines import PipelineConfig  # noqa: E402
from pipelines.loading.checkpoint import resolve_config  # noqa: E402
from pipelines.loading.weights import open_state_dict  # noqa: E402
from pipelines.registry import Registry  # noqa: E402

model, devices, encoding, *names = sys.argv[1:]
checkpoint = resolve_config(model)
architecture = Registry.load().find(checkpoint.architectures)
run = PipelineConfig(model=model, devices=devices, quantization_encoding=encoding)
state_dict = open_state_dict(
    checkpoint.download_weights(), architecture.weight_adapters["safetensors"], checkpoint.huggingface_config
)
accelerators = [Accelerator(id=ref.id) for ref in run.device_refs]
session = InferenceSession(devices=accelerators)


def devices_declared(graph: Graph) -> list[tuple[str, int]]:
    """The device of each input, as the graph says."""
    return [(value.type.device.device_type.value, value.type.device.id) for value in graph.inputs]


def devices_compiled(artifact: Path) -> list[list[tuple[str, int]]]:
    """The lists of devices in an artifact, among which are those of its inputs and of its outputs.

    MAX reads them when the artifact is initialized on real devices; nothing else of it can be read without.
    """
    lists = re.findall(rb'\[\{"label":"\w+","id":\d+\}(?:, ?\{"label":"\w+","id":\d+\})*\]', artifact.read_bytes())
    return [[(device["label"], device["id"]) for device in json.loads(found)] for found in lists]


class Untouched(architecture.pipeline_model):  # type: ignore[misc, name-defined]
    """The model up to where its graphs would be compiled and its weights placed."""

    def compile(self, names: Any) -> None:
        self.models |= dict.fromkeys(names)


traced_graphs = Untouched(run, session, accelerators, checkpoint.huggingface_config, state_dict).traced
with TemporaryDirectory() as folder:
    for name in names or traced_graphs:
        graph, artifact = traced_graphs[name].graph, Path(folder) / f"{name}.mef"
        session.compile(graph).export_mef(artifact)
        print(json.dumps({"graph": name, "declared": devices_declared(graph), "compiled": devices_compiled(artifact)}))
