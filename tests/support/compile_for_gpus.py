"""Compiles graphs for GPUs that are not there: `compile_for_gpus.py CHECKPOINT DEVICES ENCODING [GRAPH ...]`.

Nothing is executed. A process of its own, since virtual devices must be set before any device is opened. Prints a JSON
line for each graph: its inputs, devices and weights, as declared and as the compiled artifact has them.
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

from pipelines import PipelineConfig  # noqa: E402
from pipelines.loading.checkpoint import resolve_config  # noqa: E402
from pipelines.loading.weight_spec import TracedGraph  # noqa: E402
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


def declared(traced: TracedGraph) -> dict[str, Any]:
    """The inputs, devices and weights of a graph."""
    inputs = [value.type.device for value in traced.graph.inputs]
    weights = [spec.device_ref(run.device_refs) for spec in traced.weights]
    devices = {(device.device_type.value, device.id) for device in (*inputs, *weights)}
    return {"num_inputs": len(inputs), "devices": sorted(devices), "weights": sorted(s.name for s in traced.weights)}


def compiled(artifact: bytes, traced: TracedGraph) -> dict[str, Any]:
    """The same of the artifact, as far as it can be read without its devices: names, and the list of all devices."""
    inputs = set(re.findall(rb"@input(\d+)", artifact))
    (devices,) = set(re.findall(rb'\[(?:\{"label":"\w+","id":\d+\},?)+\]', artifact))
    return {
        "num_inputs": len(inputs),
        "devices": sorted((device["label"], device["id"]) for device in json.loads(devices)),
        "weights": sorted(spec.name for spec in traced.weights if spec.name.encode() in artifact),
    }


traced_graphs = architecture.pipeline_model.trace(run, checkpoint.huggingface_config, state_dict)
with TemporaryDirectory() as folder:
    for name in names or traced_graphs:
        traced, file = traced_graphs[name], Path(folder) / f"{name}.mef"
        session.compile(traced.graph).export_mef(file)
        print(
            json.dumps({"graph": name, "declared": declared(traced), "compiled": compiled(file.read_bytes(), traced)})
        )
