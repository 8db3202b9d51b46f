"""Compiles a checkpoint for GPUs that are not there: `compile_for_gpus.py CHECKPOINT DEVICES ENCODING ARTIFACT`.

Nothing is executed. A process of its own, since virtual devices must be set before any device is opened.
"""

from __future__ import annotations

import sys
from pathlib import Path

from max.driver import set_virtual_device_api, set_virtual_device_count, set_virtual_device_target_arch

set_virtual_device_api("cuda")
set_virtual_device_target_arch("sm_90a")
set_virtual_device_count(2)

from max.driver import Accelerator  # noqa: E402
from max.engine import InferenceSession  # noqa: E402

from pipelines import PipelineConfig  # noqa: E402
from pipelines.loading.checkpoint import resolve_config  # noqa: E402
from pipelines.loading.weights import check_weights, open_state_dict  # noqa: E402
from pipelines.pipeline_model import ReturnLogits  # noqa: E402
from pipelines.registry import Registry  # noqa: E402

model, devices, encoding, artifact = sys.argv[1:]
checkpoint = resolve_config(model)
architecture = Registry.load().find(checkpoint.architectures)
run = PipelineConfig(model=model, devices=devices, quantization_encoding=encoding)
state_dict = open_state_dict(checkpoint.download_weights(), architecture.adapt_name)
config = architecture.config.initialize_from_config(run, checkpoint.huggingface_config)
config.finalize(checkpoint.huggingface_config, state_dict, ReturnLogits.VARIABLE)
traced = architecture.pipeline_model.build_graph(config)
check_weights(traced.weights, state_dict)
accelerators = [Accelerator(id=ref.id) for ref in run.device_refs]
InferenceSession(devices=accelerators).compile(traced.graph).export_mef(Path(artifact))
print(f"compiled {len(traced.weights)} weights into {Path(artifact).stat().st_size} bytes")
