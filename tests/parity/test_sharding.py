"""Tensor parallelism without accelerators: random models split over shards that share the CPU.

A shard's sums are of fewer terms, and then of shards: results differ from those of one shard by float32's roundings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from command import Caller
from loader import Loader
from PIL import Image
from reference import random_tokens, relative_difference

from pipelines import SamplingParams, TextGenerationPipeline
from pipelines.text.prompts import ImagePrompt

TOLERANCE = 1e-5
"""Tolerance as a fraction of the largest logit."""
FAMILIES = ("gemma3", "gemma3_multimodal", "gemma4", "llama3_odd_vocabulary", "qwen3", "qwen3_moe")
"""Of 4 query heads, with 1 KV head (Gemma) or 2; no vocabulary is a multiple of the 64 rows of 4 padded shards."""
BOI = "<start_of_image>"
GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)


def load_shards(load: Loader, name: str, num_shards: int) -> TextGenerationPipeline:
    devices = ",".join(["cpu:0"] * num_shards) if num_shards > 1 else "cpu"
    return load(name, devices=devices, max_batch_tokens=251, max_batch_size=3)


@pytest.mark.parametrize("num_shards", [2, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_shards_equal_one(name: str, num_shards: int, load: Loader) -> None:
    """Ragged rows around the windows, in chunks of which none is a multiple of the number of shards."""
    one, several = (load_shards(load, name, n) for n in (1, num_shards))
    prompts = [random_tokens(length, one.prompts.vocab_size - 20) for length in (1, 129, 600)]
    for expected, logits in zip(one.logits(prompts), several.logits(prompts), strict=True):
        assert logits.shape[1] == one.prompts.vocab_size, "the padding is cut off"
        assert relative_difference(logits, expected) <= TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_four_shards_choose_the_tokens_of_one(name: str, load: Loader) -> None:
    one, several = (load_shards(load, name, n) for n in (1, 4))
    prompts = [random_tokens(length, one.prompts.vocab_size - 20, seed=1) for length in (3, 120, 200)]
    expected = [output.tokens for output in one.generate(prompts, GREEDY)]
    assert [output.tokens for output in several.generate(prompts, GREEDY)] == expected


@pytest.mark.parametrize("num_shards", [2, 4])
def test_images_on_shards_equal_those_on_one(num_shards: int, load: Loader) -> None:
    """The tower is the first device's, and all have its features."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    words = " ".join(f"w{token}" for token in random_tokens(150, 900))
    prompt = ImagePrompt(f"{BOI} {words} {BOI} {words}", [Image.fromarray(pixels)] * 2)
    one, several = (load_shards(load, "gemma3_multimodal", n) for n in (1, num_shards))
    assert relative_difference(several.logits([prompt])[0], one.logits([prompt])[0]) <= TOLERANCE


@pytest.mark.compiles
def test_the_command_runs_on_shards(
    checkpoints: Mapping[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Caller(capsys, monkeypatch)
    options = ["--model", str(checkpoints["qwen3"]), "--prompt", "w20 w30", "--max-new-tokens", "8"]
    devices = ("cpu", "cpu:0,cpu:0", "cpu:0,cpu:0,cpu:0,cpu:0")
    results = [call("generate", *options, "--devices", names) for names in devices]
    assert [result.code for result in results] == [0, 0, 0]
    assert results[2].out == results[1].out == results[0].out != ""
