"""The pipeline's requests: stops, limits, log probabilities, and input that is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fake_model import (
    HALF,
    VOCAB_SIZE,
    assert_idle,
    fingerprints,
    greedy_text,
    logits_of,
    new_pipeline,
    prompts_of,
    steps_of,
    text_of,
)

from pipelines.errors import InputError
from pipelines.sampling.defaults import SamplingDefaults
from pipelines.sampling.params import SamplingParams
from pipelines.text.prompts import EncodedPrompt
from pipelines.text_generation import GenerationOutput, TextGenerationPipeline

GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)


def written(pipe: TextGenerationPipeline, prompt: list[int], **params: object) -> GenerationOutput:
    (output,) = pipe.generate([prompt], SamplingParams(**params))  # type: ignore[arg-type]
    assert_idle(pipe)
    return output


def test_a_stop_string_ends_the_text_before_itself_even_across_tokens() -> None:
    pipe, (prompt,) = new_pipeline(), prompts_of(15)
    tokens = greedy_text(prompt, 30, True)
    text = text_of(tokens)
    assert len(text) == 30 and text.isascii(), "no token of it is without a character of its own"
    output = written(pipe, prompt, max_new_tokens=30, ignore_eos=True, stop=["nothing", text[10:13]])
    assert (output.text, output.tokens, output.finish_reason) == (text[:10], tokens[:13], "stop")
    streamed = [chunk.text for chunk in pipe.stream(prompt, SamplingParams(ignore_eos=True, stop=(text[10:13],)))]
    assert "".join(streamed) == text[:10]
    almost = written(pipe, prompt, max_new_tokens=12, ignore_eos=True, stop=[text[10:13]])
    assert (almost.text, almost.finish_reason) == (text[:12], "length")  # what was held back comes at the end
    last = written(pipe, prompt, max_new_tokens=13, ignore_eos=True, stop=[text[10:13]])
    assert (last.text, last.finish_reason) == (text[:10], "stop")


def test_half_a_character_comes_at_the_end_only() -> None:
    pipe, (prompt,) = new_pipeline(), prompts_of(30)
    tokens = greedy_text(prompt, 300, True)
    num_new = tokens.index(HALF) + 1
    chunks = list(pipe.stream(prompt, SamplingParams(max_new_tokens=num_new, ignore_eos=True)))
    assert "".join(chunk.text for chunk in chunks) == text_of(tokens[:num_new])
    assert chunks[-1].text == "\ufffd"
    longer = "".join(chunk.text for chunk in pipe.stream(prompt, SamplingParams(max_new_tokens=300, ignore_eos=True)))
    assert longer == text_of(tokens)


def test_stop_tokens_min_tokens_and_ignore_eos() -> None:
    pipe, (prompt,) = new_pipeline(), prompts_of(5)
    tokens = greedy_text(prompt, 500)
    stop = tokens[4]
    assert stop not in tokens[:4]
    output = written(pipe, prompt, stop_token_ids=[stop])
    assert (output.text, output.tokens, output.finish_reason) == (text_of(tokens[:4]), tokens[:5], "stop")
    longer = written(pipe, prompt, stop_token_ids=[stop], min_tokens=5)
    assert longer.tokens[:4] == tokens[:4] and stop not in longer.tokens[:5] and len(longer.tokens) > 5
    ignoring = written(pipe, prompt, ignore_eos=True, max_new_tokens=len(tokens) + 5)
    assert ignoring.tokens[: len(tokens)] == tokens and len(ignoring.tokens) == len(tokens) + 5
    both = written(pipe, prompt, ignore_eos=True, stop_token_ids=[stop])
    assert both.tokens == tokens[:5]


def test_a_stop_string_counts_after_min_tokens_only() -> None:
    pipe, (prompt,) = new_pipeline(), prompts_of(13)
    text = text_of(greedy_text(prompt, 30, True))
    output = written(pipe, prompt, max_new_tokens=30, ignore_eos=True, stop=list(text[2]), min_tokens=10)
    assert output.text.startswith(text[:10])


def test_lengths_end_a_text() -> None:
    pipe, (prompt,) = new_pipeline(max_length=50), prompts_of(40)
    assert written(pipe, prompt, ignore_eos=True, max_new_tokens=1).tokens == greedy_text(prompt, 1, True)
    for max_new_tokens in (10, 11, None):
        output = written(pipe, prompt, ignore_eos=True, max_new_tokens=max_new_tokens)
        assert (len(output.tokens), output.finish_reason) == (10, "length")


def test_logprobs_come_with_each_token() -> None:
    pipe, (prompt,) = new_pipeline(), prompts_of(12)
    output = written(pipe, prompt, max_new_tokens=6, ignore_eos=True, logprobs=3)
    assert output.logprobs is not None and len(output.logprobs) == 6
    for i, entry in enumerate(output.logprobs):
        logits = logits_of(fingerprints(prompt + output.tokens[:i]))[-1].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum())
        best = np.argsort(-logprobs)[:3]
        assert entry.token_id == output.tokens[i] == best[0]
        assert entry.logprob == pytest.approx(logprobs[entry.token_id], abs=1e-5)
        assert [token for token, _ in entry.top] == best.tolist()
    assert written(pipe, prompt, max_new_tokens=1).logprobs is None


def test_each_prompt_may_have_its_own_parameters_and_be_text_or_ids() -> None:
    pipe = new_pipeline()
    params = [SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (2, 3, 4)]
    outputs = pipe.generate(["AB", [17, 18], np.array([17, 18])], params)  # type: ignore[arg-type]
    assert [len(output.tokens) for output in outputs] == [2, 3, 4]
    assert outputs[2].tokens[:2] == outputs[1].tokens[:2] == outputs[0].tokens
    assert pipe.generate("AB", params[0]) == pipe.generate([17, 18], params[0]) == outputs[:1]
    assert pipe.generate([], GREEDY) == []


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        (["A", ""], None, "^prompt 2: the prompt is empty"),
        (["A", "  "], None, "^prompt 2: the prompt is empty"),  # nothing is left of it
        ([[1], []], None, "^prompt 2: the prompt is empty"),
        ([[1, VOCAB_SIZE]], None, f"^token id {VOCAB_SIZE} is outside"),
        ([[-1]], None, "^token id -1 is outside"),
        ([[1] * 5, [1] * 256], None, "^prompt 2: the prompt has 256 tokens, and the limit is 256"),
        ([EncodedPrompt([])], None, "the prompt is empty"),
        ([EncodedPrompt([1, VOCAB_SIZE])], None, f"token id {VOCAB_SIZE} is outside"),
        ([EncodedPrompt([1] * 256)], None, "256 tokens, and the limit is 256"),
        (["A"], [GREEDY, GREEDY], "1 prompts have 2"),
        ([[1], [1] * 200], [GREEDY, SamplingParams()], "^prompt 2: .* 256 tokens .* KV cache of 128"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    prompts: list[str], params: list[SamplingParams] | None, message: str
) -> None:
    pages = {"full": 1 if params else 4, "sliding": 6}
    pipe = new_pipeline(pages, max_length=256)
    with pytest.raises(InputError, match=message):
        pipe.generate(prompts, params)
    assert not steps_of(pipe)
    assert_idle(pipe)


def test_what_a_request_leaves_open_is_taken_from_the_checkpoints_defaults() -> None:
    defaults = SamplingDefaults(temperature=1.0, top_k=5, repetition_penalty=1.3)
    plain, pipe = new_pipeline(), new_pipeline()
    pipe.requests.sampling_defaults = defaults
    (prompt,) = prompts_of(20)
    open_params = SamplingParams(max_new_tokens=20, ignore_eos=True, seed=3)
    said = dataclasses.replace(open_params, temperature=1.0, top_k=5, repetition_penalty=1.3)
    assert pipe.generate([prompt], open_params) == plain.generate([prompt], said)
    greedy = dataclasses.replace(open_params, temperature=0, repetition_penalty=1.0)
    assert pipe.generate([prompt], greedy) == plain.generate([prompt], open_params)


def test_token_ids_are_whole_numbers() -> None:
    with pytest.raises(TypeError):
        new_pipeline().generate([[1.5, 2.5]])  # type: ignore[arg-type]


def test_stats_tell_prefill_from_decode() -> None:
    pipe = new_pipeline(max_batch_tokens=100)
    pipe.generate(prompts_of(150, 40), GREEDY)
    stats = pipe.engine.stats
    assert stats.num_steps == len(steps_of(pipe)) == 21
    # The second step has the rest of the long prompt beside the short one's first decode.
    assert stats.num_prefill_tokens == 150 + 40 + 1 and stats.num_decode_tokens == 2 * 19 - 1
    assert stats.prefill_s > 0 and stats.decode_s > 0
