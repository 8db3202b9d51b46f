"""Equal to transformers: every position's logits, and hundreds of greedy tokens."""

from __future__ import annotations

import json
import json.decoder
from collections.abc import Mapping
from pathlib import Path

import pytest
from loader import Loader
from reference import TOLERANCE, Reference, random_tokens, relative_difference
from tiny_models import TINY_MODELS

from architectures.decoder.inputs import DecoderInputs
from pipelines import SamplingParams
from pipelines.context import TextContext

WINDOWS = {"demo": 128, "gemma3": 256} | dict.fromkeys(TINY_MODELS.keys() - {"gemma3"}, 128)


def lengths(name: str) -> list[int]:
    window = WINDOWS[name]
    return [1, window - 1, window, window + 1, 3 * window]


@pytest.mark.parametrize("chunk", [7, 128, 1024])
@pytest.mark.parametrize("name", sorted(WINDOWS))
def test_logits_equal_transformers_across_the_window(
    name: str, chunk: int, load: Loader, references: Mapping[str, Reference]
) -> None:
    pipe, reference = load(name, max_batch_tokens=chunk, max_batch_size=1), references[name]
    for length in lengths(name):
        tokens = random_tokens(length, reference.vocab_size)
        (ours,) = pipe.logits([tokens])
        assert relative_difference(ours, reference.logits(tokens)) <= TOLERANCE, f"{length} tokens"


@pytest.mark.parametrize("chunk", [7, 100, 1024])
@pytest.mark.parametrize("name", sorted(WINDOWS))
def test_a_ragged_batch_equals_transformers(
    name: str, chunk: int, load: Loader, references: Mapping[str, Reference]
) -> None:
    pipe, reference = load(name, max_batch_tokens=chunk, max_batch_size=5), references[name]
    prompts = [random_tokens(length, reference.vocab_size) for length in lengths(name)]
    for tokens, ours in zip(prompts, pipe.logits(prompts), strict=True):
        assert relative_difference(ours, reference.logits(tokens)) <= TOLERANCE, f"{len(tokens)} tokens"


@pytest.mark.parametrize(("kv_cache_dtype", "bound"), [("bfloat16", 0.01), ("int8", 0.03)])
def test_a_smaller_cache_errs_as_documented(
    kv_cache_dtype: str, bound: float, load: Loader, references: Mapping[str, Reference]
) -> None:
    """A few times what docs/performance.md says of text, as the tokens are random."""
    pipe, reference = load("demo", max_batch_size=1, kv_cache_dtype=kv_cache_dtype), references["demo"]
    tokens = random_tokens(3 * WINDOWS["demo"], reference.vocab_size)
    (ours,) = pipe.logits([tokens])
    assert TOLERANCE < relative_difference(ours, reference.logits(tokens)) <= bound


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_greedy_tokens_of_a_random_model_equal_transformers(
    name: str, load: Loader, references: Mapping[str, Reference]
) -> None:
    pipe, reference = load(name, max_batch_tokens=100, max_batch_size=5), references[name]
    prompts = [random_tokens(length, reference.vocab_size, seed=1) for length in (5, 120, 200)]
    greedy = SamplingParams(max_new_tokens=40, ignore_eos=True)
    outputs = pipe.generate(prompts, greedy)
    assert [output.tokens for output in outputs] == [reference.greedy(prompt, 40) for prompt in prompts]


@pytest.mark.parametrize("name", ["gemma3", "gemma4", "gemma4_dense", "llama3", "qwen3", "qwen3_bias", "qwen3_moe"])
def test_a_prompt_of_8192_tokens_equals_transformers(
    name: str, load: Loader, references: Mapping[str, Reference]
) -> None:
    """Errors of RoPE grow with the position."""
    pipe, reference = load(name, max_batch_tokens=1024, max_batch_size=1), references[name]
    tokens = random_tokens(8192, reference.vocab_size)
    theirs = reference.logits(tokens)
    for start, slab in pipe.logit_slabs(tokens):
        assert relative_difference(slab, theirs[start : start + len(slab)]) <= TOLERANCE


def test_a_model_driven_by_hand_gives_what_its_pipeline_gives(load: Loader) -> None:
    pipe, num_new = load("demo"), 20
    prompts = [random_tokens(length, 4096) for length in (3, 140, 300)]
    contexts = [TextContext(f"by hand {i}", prompt) for i, prompt in enumerate(prompts)]
    for context in contexts:
        context.num_scheduled_tokens, context.pages = len(context.tokens), pipe.cache.open()
        assert pipe.cache.allocate(context.pages, len(context.tokens) + num_new)
    rows = [context.pages for context in contexts if context.pages]
    pages = pipe.cache.runtime_inputs(rows, [context.num_scheduled_tokens for context in contexts])
    inputs = pipe.model.prepare_initial_token_inputs([contexts], pages)
    assert isinstance(inputs, DecoderInputs)
    as_on_maxs_page = DecoderInputs(
        inputs.tokens,
        inputs.input_row_offsets,
        inputs.signal_buffers,
        inputs.return_n_logits,
        kv_cache_inputs=inputs.kv_cache_inputs,
    )
    first = pipe.model.execute(as_on_maxs_page)  # without positions and RoPE tables, which follow from the rest
    steps = []
    for _ in range(num_new):
        outputs = pipe.model.execute(inputs)
        steps.append(outputs.greedy_tokens.to_numpy().tolist())
        inputs = pipe.model.prepare_next_token_inputs(outputs.greedy_tokens, inputs)
    assert steps[0] == first.greedy_tokens.to_numpy().tolist()
    for row in rows:
        pipe.cache.release(row)
    expected = pipe.generate(prompts, SamplingParams(max_new_tokens=num_new, ignore_eos=True))
    assert [list(tokens) for tokens in zip(*steps, strict=True)] == [output.tokens for output in expected]


def test_a_prefix_hit_gives_what_a_miss_gives(load: Loader) -> None:
    cached, uncached = load("demo", enable_prefix_caching=True), load("demo")
    greedy = SamplingParams(max_new_tokens=40, ignore_eos=True)
    prefix = random_tokens(400, 4096)
    prompts = [prefix + random_tokens(length, 4096) for length in (1, 50, 200)]
    expected = [output.tokens for output in uncached.generate(prompts, greedy)]
    assert [cached.generate([prompt], greedy)[0].tokens for prompt in prompts] == expected
    # Of the second and third prompt the three whole pages that they share with the first were not computed again.
    assert cached.engine.stats.num_prefill_tokens == sum(map(len, prompts)) - 2 * 384


@pytest.fixture(scope="module")
def long_texts(references: Mapping[str, Reference], load: Loader) -> list[tuple[list[int], list[int]]]:
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
