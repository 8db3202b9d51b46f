"""The work of a step against counts by hand, for the demo model and for made-up shapes."""

from __future__ import annotations

import dataclasses

import pytest
from kv_caches import page_group

from kv_cache import KVCacheParams
from pipelines import PipelineConfig
from pipelines.benchmark.local_settings import LocalTest
from pipelines.benchmark.local_work import ModelWork, Weights
from pipelines.load import prepare_pipeline

PARAMS = KVCacheParams((page_group("sliding", 4, num_layers=3), page_group("full", num_layers=2)))
WORK = ModelWork(Weights(1000, 500), Weights(100, 50), Weights(800, 400), 0.25, num_heads=2, kv_params=PARAMS)
TOKEN_BYTES = 2 * 8 * 4  # of a layer: key and value of one head of 8 float32 numbers


def test_generation_reads_weights_once_a_step_and_what_each_row_sees() -> None:
    one = 1000 + 100 + 0.25 * 800
    seen_full, seen_sliding = 10 + 11 + 12, 4 + 4 + 4  # by tokens 9, 10 and 11
    cache = TOKEN_BYTES * (2 * seen_full + 3 * seen_sliding)
    assert WORK.bytes_read(LocalTest("generate", 3, 9, 1)) == 3 * one + cache
    two = 1000 + 100 + (1 - 0.75**2) * 800  # experts that two rows choose
    assert WORK.bytes_read(LocalTest("generate", 3, 9, 2)) == 3 * two + 2 * cache


def test_operations_of_a_prompt() -> None:
    products = 2 * 3 * (500 + 0.25 * 400) + 2 * 50  # the head once a row
    seen_full, seen_sliding = 3 + 4 + 5, 3 + 4 + 4  # by tokens 2, 3 and 4
    attention = 2 * 2 * (2 * 8) * (2 * seen_full + 3 * seen_sliding)
    assert WORK.num_operations(LocalTest("prompt", 3, 2, 1)) == products + attention
    assert WORK.num_operations(LocalTest("prompt", 3, 2, 4)) == 4 * (products + attention)


@pytest.mark.parametrize(("encoding", "value_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_the_weights_of_the_demo(encoding: str, value_bytes: int) -> None:
    prepared = prepare_pipeline(PipelineConfig(quantization_encoding=encoding))
    text = prepared.checkpoint.huggingface_config.get_text_config()
    work = ModelWork.of(prepared)
    head = text.vocab_size * text.hidden_size
    attention = 2 * text.hidden_size * (text.num_attention_heads + text.num_key_value_heads) * text.head_dim
    layers = text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)
    assert (work.head.num_values, work.head.bytes) == (head, head * value_bytes)
    assert work.shared.num_values == layers
    assert 0 <= work.shared.bytes - layers * value_bytes < 0.01 * layers  # and the norms
    assert work.experts == Weights() and work.expert_share == 1
    assert work.num_heads == text.num_attention_heads
    assert not prepared.config.rounds_activations


def test_an_embedding_that_is_not_the_head_is_not_read() -> None:
    prepared = prepare_pipeline(PipelineConfig(quantization_encoding="float32"))
    tied = ModelWork.of(prepared)
    state_dict = prepared.state_dict | {"lm_head.weight": prepared.state_dict["embed_tokens.weight"]}
    assert ModelWork.of(dataclasses.replace(prepared, state_dict=state_dict)) == tied
