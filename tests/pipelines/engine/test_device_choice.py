"""Steps that overlap with the device's sampler, which runs on the CPU here: the text is that of the host's sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import device_samplers
import numpy as np
import pytest
from fake_model import VOCAB_SIZE, assert_idle, new_pipeline, prompts_of
from max.driver import Buffer

from pipelines.engine.device_choice import DeviceChoice, DeviceTokenSampler
from pipelines.engine.step import RowOutputs
from pipelines.pipeline_model import ModelOutputs
from pipelines.sampling.params import SamplingParams

pytestmark = pytest.mark.compiles

CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0},
    "cut": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "penalized": {"temperature": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.3},
    "restricted": {"temperature": 1.0, "allowed_token_ids": tuple(range(0, 40)), "logit_bias": {3: 2.0}},
    "late end": {"min_tokens": 12, "temperature": 1.5, "ignore_eos": False},
    "with log probabilities": {"temperature": 1.0, "logprobs": 3},
    "greedy with log probabilities": {"logprobs": 0},
}


class PaddingSampler(DeviceTokenSampler):
    """Fills rows up with impossible tokens, so that the graphs are those of the sampler's own tests."""

    def launch(self, outputs: ModelOutputs, rows: Sequence[RowOutputs]) -> DeviceChoice:
        padding = ((0, 0), (0, device_samplers.VOCAB_SIZE - VOCAB_SIZE))
        logits_BV = np.pad(outputs.next_token_logits.to_numpy(), padding, constant_values=-np.inf)
        return super().launch(dataclasses.replace(outputs, next_token_logits=Buffer.from_numpy(logits_BV)), rows)


@pytest.fixture(scope="module")
def sampler() -> DeviceTokenSampler:
    return PaddingSampler(device_samplers.cpu_sampler())


def params_of(name: str, seed: int) -> SamplingParams:
    settings = {"max_new_tokens": 40, "ignore_eos": True, "seed": seed} | CASES[name]
    return SamplingParams(**settings)


def test_requests_of_all_kinds_in_one_batch_have_the_text_of_the_hosts_sampler(sampler: DeviceTokenSampler) -> None:
    """Preempted, in chunks, in batches that change; the random numbers are the requests' own."""
    prompts = prompts_of(*range(20, 340, 20))
    params = [params_of(name, seed) for seed in (1, 2) for name in CASES]
    alone = new_pipeline(max_batch_size=1)
    expected = [alone.generate([prompt], p)[0] for prompt, p in zip(prompts, params, strict=True)]
    pipe = new_pipeline(
        {"full": 6, "sliding": 6}, sampler, max_length=600, max_batch_tokens=100, enable_prefix_caching=True
    )
    outputs = pipe.generate(prompts, params)
    for output, wanted in zip(outputs, expected, strict=True):
        assert (output.tokens, output.finish_reason) == (wanted.tokens, wanted.finish_reason)
        for ours, theirs in zip(output.logprobs or (), wanted.logprobs or (), strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
            assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
    assert pipe.engine.scheduler.num_preemptions > 0 and pipe.engine.stats.num_failed_steps == 0
    assert_idle(pipe)


def test_a_row_without_a_token_ends_alone(sampler: DeviceTokenSampler) -> None:
    innocent = [[token for token in prompt if token != 63] for prompt in prompts_of(30, 40)]
    pipe, prompts = new_pipeline(sampler=sampler), [innocent[0], [5, 63], innocent[1]]
    pipe.model.nan_after = 63  # type: ignore[attr-defined]
    params = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=1.0, seed=3)
    outputs = pipe.generate(prompts, params)
    alone = new_pipeline(max_batch_size=1)
    assert [output.finish_reason for output in outputs] == ["length", "error", "length"]
    assert isinstance(outputs[1].error, FloatingPointError) and pipe.engine.stats.num_failed_steps == 0
    for i in (0, 2):
        assert outputs[i].tokens == alone.generate([prompts[i]], params)[0].tokens
    assert_idle(pipe)
