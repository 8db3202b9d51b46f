"""Tensor parallelism without accelerators: random models split over two shards that share the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from max.driver import CPU
from max.engine import InferenceSession
from max.graph import DeviceRef
from reference import TOLERANCE, Reference, random_tokens, relative_difference

from kv_cache import KVCacheManager
from pipelines import PipelineConfig
from pipelines.context import TextContext
from pipelines.loading.checkpoint import resolve_config
from pipelines.loading.weights import open_state_dict
from pipelines.registry import Registry


class TwoShards(PipelineConfig):
    """A run on two devices that are both the CPU."""

    @property
    def device_refs(self) -> list[DeviceRef]:
        return [DeviceRef.CPU(), DeviceRef.CPU()]


@pytest.mark.compiles
@pytest.mark.parametrize("name", ["gemma3", "gemma4", "qwen3_moe"])
def test_two_shards_equal_transformers(
    name: str, checkpoints: Mapping[str, Path], references: Mapping[str, Reference]
) -> None:
    checkpoint, devices = resolve_config(str(checkpoints[name])), [CPU(), CPU()]
    architecture = Registry.load().find(checkpoint.architectures)
    config = TwoShards(model=str(checkpoints[name]), max_length=1024, quantization_encoding=checkpoint.dtype or "auto")
    state_dict = open_state_dict(
        checkpoint.download_weights(), architecture.weight_adapters["safetensors"], checkpoint.huggingface_config
    )
    session = InferenceSession(devices=[CPU()])
    model = architecture.pipeline_model(config, session, devices, checkpoint.huggingface_config, state_dict)
    kv_params = model.config.get_kv_params()
    cache = KVCacheManager(kv_params, {group.name: 8 for group in kv_params.groups}, devices)

    tokens = random_tokens(600, references[name].vocab_size)
    context = TextContext("a", tokens, pages=cache.open())
    assert context.pages is not None
    ours = []
    for count in (250, 300, 49, 1):  # into the window, across it, and a decode
        context.num_scheduled_tokens = count
        assert cache.allocate(context.pages, count)
        inputs = model.prepare_initial_token_inputs([[context]], cache.runtime_inputs([context.pages], [count]), count)
        ours.append(model.execute(inputs).logits.to_numpy().copy())
        cache.commit(context.pages, count)
    assert relative_difference(np.concatenate(ours), references[name].logits(tokens)) <= TOLERANCE
