"""Compiles graphs for GPUs that are not there: `compile_for_gpus.py MODEL DEVICES ENCODING [GRAPH ...]`.

MODEL is a checkpoint, or a published one without weights (tests/configs), with --layers only its first ones. Nothing is
executed. A process of its own, since virtual devices must be set before any device is opened. Prints a JSON line for
each graph: its inputs, devices and weights, as declared and as the compiled artifact has them, seconds and bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from max.driver import set_virtual_device_api, set_virtual_device_count, set_virtual_device_target_arch

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("devices")
parser.add_argument("encoding")
parser.add_argument("graphs", nargs="*")
parser.add_argument("--target", default="cuda:sm_90a", help="API and architecture of the GPUs")
parser.add_argument("--tables-on-host", action="store_true", help="as on GPUs that have little room for lookup tables")
parser.add_argument("--layers", type=int, help="so many of a published model's layers")
arguments = parser.parse_args()

api, _, arch = arguments.target.partition(":")
set_virtual_device_api(api)
set_virtual_device_target_arch(arch)
set_virtual_device_count(8)

from max.driver import Accelerator  # noqa: E402
from max.engine import InferenceSession  # noqa: E402
from max.graph.weights import WeightData  # noqa: E402
from published import FOLDERS, state_dict_of  # noqa: E402
from transformers import AutoConfig  # noqa: E402

from pipelines import PipelineConfig  # noqa: E402
from pipelines.loading.checkpoint import resolve_config  # noqa: E402
from pipelines.loading.weight_spec import TracedGraph  # noqa: E402
from pipelines.loading.weights import open_state_dict  # noqa: E402
from pipelines.registry import Registry  # noqa: E402

run = PipelineConfig(
    model=str(arguments.model), devices=arguments.devices, quantization_encoding=arguments.encoding, max_length=4096
)
checkpoint = resolve_config(run.model)
architecture = Registry.load().find(checkpoint.architectures)
accelerators = [Accelerator(id=ref.id) for ref in run.device_refs]
session = InferenceSession(devices=accelerators)


def opened() -> tuple[Any, Mapping[str, WeightData]]:
    """The configuration of transformers, and the tensors; a published model's have no values."""
    if arguments.model.name not in FOLDERS:
        adapt = architecture.weight_adapters["safetensors"]
        return checkpoint.huggingface_config, open_state_dict(
            checkpoint.download_weights(), adapt, checkpoint.huggingface_config
        )
    huggingface_config, weights = AutoConfig.from_pretrained(arguments.model), state_dict_of(arguments.model)
    if arguments.layers is not None:
        weights = with_layers(huggingface_config.get_text_config(), weights, arguments.layers)
    return huggingface_config, weights


def with_layers(text: Any, weights: Mapping[str, WeightData], num_layers: int) -> dict[str, WeightData]:
    """Leaves the first layers of a model; every other size stays."""
    text.num_hidden_layers = num_layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:num_layers]
    numbers = {name: re.match(r"layers\.(\d+)\.", name) for name in weights}
    return {name: data for name, data in weights.items() if not (n := numbers[name]) or int(n[1]) < num_layers}


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


placement = {"tables_on_device": not arguments.tables_on_host} if architecture.lookup_tables else {}
traced_graphs = architecture.pipeline_model.trace(run, *opened(), **placement)
with TemporaryDirectory() as folder:
    for name in arguments.graphs or traced_graphs:
        traced, file = traced_graphs[name], Path(folder) / f"{name}.mef"
        start = time.perf_counter()
        session.compile(traced.graph).export_mef(file)
        seconds, artifact = time.perf_counter() - start, file.read_bytes()
        result = {"graph": name, "declared": declared(traced), "compiled": compiled(artifact, traced)}
        print(json.dumps(result | {"seconds": round(seconds), "bytes": len(artifact)}), flush=True)
