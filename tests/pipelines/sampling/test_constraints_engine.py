"""Constrained requests in the engine: forced tokens, batches, preemption, and failures that stay with their request."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from fake_model import EOS, VOCAB_SIZE, Row, assert_idle, new_pipeline, prompts_of, random_prompt, steps_of, text_of
from tokenizers import AddedToken, Tokenizer, decoders, models

from pipelines.context import TextContext
from pipelines.sampling.constraints import ConstraintCompiler, ConstraintError
from pipelines.sampling.params import SamplingParams
from pipelines.text_generation import TextGenerationPipeline


class CharacterTokenizer:
    """The fake model's tokens, one a character."""

    def to_json(self) -> str:
        tokenizer = Tokenizer(models.BPE({chr(ord("0") + token): token for token in range(VOCAB_SIZE)}, []))
        tokenizer.add_special_tokens([AddedToken(chr(ord("0") + EOS), special=True)])
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer.to_str()


COMPILER = ConstraintCompiler(CharacterTokenizer(), VOCAB_SIZE, [EOS])
FORCED = "abcdefg"


def submit(pipe: TextGenerationPipeline, prompt: list[int], pattern: str, **params: object) -> TextContext:
    context = pipe.requests.generation(prompt, SamplingParams(**params), COMPILER.regex(pattern))  # type: ignore[arg-type]
    pipe.engine.submit(context)
    return context


def run(pipe: TextGenerationPipeline) -> None:
    while pipe.engine.has_work:
        pipe.engine.step()


def output(context: TextContext) -> str:
    """Its text, of which every piece went out once."""
    tokens = [token for chunk in context.chunks for token in chunk.tokens]
    assert tokens == context.tokens[context.num_prompt_tokens :]
    text = "".join(chunk.text for chunk in context.chunks)
    assert text == text_of(tokens)
    return text


def test_forced_tokens_are_computed_together() -> None:
    pipe = new_pipeline()
    (prompt,) = prompts_of(10)
    context = submit(pipe, prompt, f"[hi]{FORCED}[jk]{FORCED}")
    run(pipe)
    assert re.fullmatch(f"[hi]{FORCED}[jk]{FORCED}", output(context)) and context.finish_reason == "stop"
    assert [len(chunk.tokens) for chunk in context.chunks] == [8, 8]
    assert steps_of(pipe) == [[Row("0", 0, 10)], [Row("0", 10, 8)]]
    assert_idle(pipe)


def test_sampled_tokens_do_not_depend_on_forcing() -> None:
    """Where log probabilities are wanted nothing is forced; the text is the same, and each token has its own."""
    for temperature in (0.0, 1.0):
        texts = []
        for logprobs in (None, 1):
            pipe = new_pipeline()
            (prompt,) = prompts_of(10)
            params = {"temperature": temperature, "seed": 5, "logprobs": logprobs}
            context = submit(pipe, prompt, f"([hi]{FORCED}){{4}}", **params)
            run(pipe)
            texts.append(output(context))
            found = [entry.token_id for chunk in context.chunks for entry in chunk.logprobs]
            assert found == ([] if logprobs is None else context.tokens[10:])
        assert temperature > 0 or texts[0] == texts[1]  # a token that is sampled alone draws a random number


def test_a_batch_gives_what_each_gives_alone() -> None:
    patterns = [f"([hi]{FORCED}[0-9A-Z]{{1,9}}){{2,6}}", "[a-n]{5,50}", "(A|B)+", f"{FORCED}*", "[^a]{20}"]
    requests = [
        (random_prompt(random.Random(i), 5 + 40 * i), patterns[i % 5], {"temperature": i % 2, "seed": i})
        for i in range(10)
    ]
    alone = []
    for prompt, pattern, params in requests:
        pipe = new_pipeline()
        context = submit(pipe, prompt, pattern, max_new_tokens=60, **params)
        run(pipe)
        alone.append(output(context))
    for num_pages in ({"full": 100, "sliding": 100}, {"full": 6, "sliding": 12}):
        pipe = new_pipeline(num_pages, max_batch_tokens=32)
        contexts = [submit(pipe, prompt, pattern, max_new_tokens=60, **params) for prompt, pattern, params in requests]
        run(pipe)
        assert [output(context) for context in contexts] == alone
        assert_idle(pipe)


def test_masks_are_computed_while_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = new_pipeline()
    (prompt,) = prompts_of(10)
    context = submit(pipe, prompt, "[ab]{3}")
    assert context.consumer is not None
    monkeypatch.setattr(context.consumer, "prepare", lambda: (_ for _ in ()).throw(AssertionError))
    pipe.engine.step()
    assert context.finish_reason == "error"


def test_a_grammar_that_fails_ends_its_request_alone() -> None:
    pipe = new_pipeline()
    first, second = prompts_of(10, 12)
    bad, good = submit(pipe, first, "[a-n]{30}"), submit(pipe, second, "[a-n]{30}")
    pipe.engine.step()
    consumer = bad.consumer
    with pytest.raises(ConstraintError):
        consumer.constraint.accept(EOS)  # type: ignore[union-attr]
    run(pipe)
    assert bad.finish_reason == "error" and isinstance(bad.error, ConstraintError)
    assert good.finish_reason == "stop" and len(output(good)) == 30
    assert_idle(pipe)


def test_limits_within_forced_tokens() -> None:
    pipe = new_pipeline()
    (prompt,) = prompts_of(10)
    limited = submit(pipe, prompt, f"[hi]{FORCED}", max_new_tokens=3)
    stopped = submit(pipe, prompt, f"[hi]{FORCED}", stop_token_ids=[ord("c") - ord("0")])
    string = submit(pipe, prompt, f"[hi]{FORCED}", stop="cd")
    run(pipe)
    assert output(limited)[1:] == "ab" and limited.finish_reason == "length"
    assert "".join(chunk.text for chunk in stopped.chunks)[1:] == "ab" and stopped.finish_reason == "stop"
    assert "".join(chunk.text for chunk in string.chunks)[1:] == "ab" and string.finish_reason == "stop"
    assert np.array(string.tokens[11:]).tolist() == [ord(character) - ord("0") for character in "abcd"]
    assert_idle(pipe)
