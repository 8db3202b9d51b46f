"""Compiles the tiny Gemma 3 for two GPUs that are not there: `compile_for_gpus.py CHECKPOINT`. Nothing is executed.

A process of its own, since virtual devices must be set before any device is opened.
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

from architectures.gemma3 import Gemma3Config  # noqa: E402
from architectures.gemma3.graph import build_graph  # noqa: E402
from architectures.gemma3.weight_adapters import adapt_name  # noqa: E402
from pipelines import PipelineConfig  # noqa: E402
from pipelines.checkpoint import resolve_config  # noqa: E402
from pipelines.pipeline_model import ReturnLogits  # noqa: E402
from pipelines.weights import check_weights, open_state_dict  # noqa: E402

checkpoint = resolve_config(sys.argv[1])
run = PipelineConfig(model=sys.argv[1], devices="gpu:0,1", quantization_encoding="bfloat16")
state_dict = open_state_dict(checkpoint.download_weights(), adapt_name)
config = Gemma3Config.initialize_from_config(run, checkpoint.huggingface_config)
config.finalize(checkpoint.huggingface_config, state_dict, ReturnLogits.VARIABLE)
traced = build_graph(config)
check_weights(traced.weights, state_dict)
artifact = Path(sys.argv[2])
InferenceSession(devices=[Accelerator(id=i) for i in range(2)]).compile(traced.graph).export_mef(artifact)
print(f"compiled {len(traced.weights)} weights into {artifact.stat().st_size} bytes")
