"""Equal to transformers: every position's logits, and hundreds of greedy tokens."""

from __future__ import annotations

import json
import json.decoder
from pathlib import Path

import pytest
from conftest import Loader
from reference import TOLERANCE, Reference, random_tokens, relative_difference

from pipelines import SamplingParams

WINDOWS = {"demo": 128, "tiny": 256}


def lengths(name: str) -> list[int]:
    window = WINDOWS[name]
    return [1, window - 1, window, window + 1, 3 * window]


@pytest.mark.parametrize("chunk", [7, 128, 1024])
@pytest.mark.parametrize("name", WINDOWS)
def test_logits_equal_transformers_across_the_window(
    name: str, chunk: int, load: Loader, references: dict[str, Reference]
) -> None:
    pipe, reference = load(name, max_batch_tokens=chunk, max_batch_size=1), references[name]
    for length in lengths(name):
        tokens = random_tokens(length, reference.vocab_size)
        (ours,) = pipe.logits([tokens])
        assert relative_difference(ours, reference.logits(tokens)) <= TOLERANCE, f"{length} tokens"


@pytest.mark.parametrize("chunk", [7, 100, 1024])
@pytest.mark.parametrize("name", WINDOWS)
def test_a_ragged_batch_equals_transformers(
    name: str, chunk: int, load: Loader, references: dict[str, Reference]
) -> None:
    pipe, reference = load(name, max_batch_tokens=chunk, max_batch_size=5), references[name]
    prompts = [random_tokens(length, reference.vocab_size) for length in lengths(name)]
    for tokens, ours in zip(prompts, pipe.logits(prompts), strict=True):
        assert relative_difference(ours, reference.logits(tokens)) <= TOLERANCE, f"{len(tokens)} tokens"


@pytest.fixture(scope="module")
def long_texts(references: dict[str, Reference], load: Loader) -> list[tuple[list[int], list[int]]]:
    """Eight prompts of real code, longer than the window, and the 300 tokens that transformers writes after each."""
    pipe = load("demo")
    source = Path(json.__file__).read_text() + Path(json.decoder.__file__).read_text()
    tokens = pipe.tokenizer.encode(source)
    prompts = [tokens[:1] + tokens[start : start + 129 + 20 * i] for i, start in enumerate(range(1, 2401, 300))]
    return [(prompt, references["demo"].greedy(prompt, 300)) for prompt in prompts]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"max_batch_size": 1}, id="one at a time"),
        pytest.param({"max_batch_size": 8}, id="batch of 8"),
        pytest.param({"max_batch_size": 8, "max_batch_tokens": 64}, id="small chunks"),
        pytest.param({"max_batch_size": 8, "max_length": 768, "kv_cache_memory": 14 * 2**20}, id="preempted"),
    ],
)
def test_300_greedy_tokens_equal_transformers(
    settings: dict[str, int], load: Loader, long_texts: list[tuple[list[int], list[int]]]
) -> None:
    pipe = load("demo", **settings)
    greedy = SamplingParams(max_new_tokens=300, ignore_eos=True)
    outputs = pipe.generate([prompt for prompt, _ in long_texts], greedy)
    assert [output.tokens for output in outputs] == [expected for _, expected in long_texts]
    assert (pipe.engine.scheduler.num_preemptions > 0) == ("kv_cache_memory" in settings)
