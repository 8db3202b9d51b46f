"""Tensor parallelism without accelerators: the tiny model split over two shards that share the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from max.driver import CPU
from max.engine import InferenceSession
from max.graph import DeviceRef
from reference import TOLERANCE, Reference, random_tokens, relative_difference

from architectures.gemma3 import Gemma3Model
from architectures.gemma3.weight_adapters import adapt_name
from kv_cache import KVCacheManager
from pipelines import PipelineConfig
from pipelines.checkpoint import resolve_config
from pipelines.context import TextContext
from pipelines.weights import open_state_dict


class TwoShards(PipelineConfig):
    """A run on two devices that are both the CPU."""

    @property
    def device_refs(self) -> list[DeviceRef]:
        return [DeviceRef.CPU(), DeviceRef.CPU()]


def test_two_shards_equal_transformers(tiny_gemma3: Path, references: dict[str, Reference]) -> None:
    config = TwoShards(model=str(tiny_gemma3), max_length=1024, quantization_encoding="float32")
    checkpoint, devices = resolve_config(config.model), [CPU(), CPU()]
    state_dict = open_state_dict(checkpoint.download_weights(), adapt_name)
    session = InferenceSession(devices=[CPU()])
    model = Gemma3Model(config, session, devices, checkpoint.huggingface_config, state_dict)
    cache = KVCacheManager(model.config.get_kv_params(), {"sliding_attention": 8, "full_attention": 8}, devices)

    tokens = random_tokens(600, references["tiny"].vocab_size)
    context = TextContext("a", tokens)
    cache.admit("a", tokens)
    ours = []
    for count in (250, 300, 49, 1):  # into the window, across it, and a decode
        context.num_scheduled = count
        assert cache.reserve("a", count)
        inputs = model.prepare_initial_token_inputs([[context]], cache.runtime_inputs(["a"], [count]), count)
        ours.append(model.execute(inputs).logits.to_numpy().copy())
        cache.commit("a", context.next_chunk)
        context.advance()
    assert relative_difference(np.concatenate(ours), references["tiny"].logits(tokens)) <= TOLERANCE
