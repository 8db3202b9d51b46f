"""Compiles a checkpoint's graphs for GPUs that are not there: `compile_for_gpus.py CHECKPOINT DEVICES ENCODING`.

Nothing is executed. A process of its own, since virtual devices must be set before any device is opened. Prints, for
each graph, the inputs of the compiled artifact as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from max.driver import set_virtual_device_api, set_virtual_device_count, set_virtual_device_target_arch

set_virtual_device_api("cuda")
set_virtual_device_target_arch("sm_90a")
set_virtual_device_count(2)

from max.driver import Accelerator  # noqa: E402
from max.engine import InferenceSession  # noqa: E402

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


class Compiled(architecture.pipeline_model):  # type: ignore[misc, name-defined]
    """The model up to where its weights would be placed."""

    def compile(self, names: Any) -> None:
        for name in names:
            self.models[name] = self.session.compile(self.traced[name].graph)


compiled = Compiled(run, session, accelerators, checkpoint.huggingface_config, state_dict)
compiled.compile(name for name in compiled.graph_names if name in names or not names)
for name, artifact in compiled.models.items():
    declared = [f"{t.dtype.name} {t.device}" for t in compiled.traced[name].graph.input_types]  # type: ignore[attr-defined]
    print(json.dumps({"graph": name, "declared": declared, "weights": len(compiled.traced[name].weights)}))
