"""Answers for random JSON schemas, from random logits: every one is valid, whichever way it is sampled."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from json_schemas import SchemaMaker
from structured import PUBLISHED_FOLDER, Vocabulary, generate, published_vocabulary, small_vocabulary

from pipelines.sampling.constraints import Constraint, Thinking
from pipelines.text.parsers import ThinkingSyntax

NUM_SCHEMAS = 200
QWEN3 = ThinkingSyntax("<think>", "</think>", tail="\n\n")
PARAMS: list[dict[str, Any]] = [{}, {"temperature": 0.0}, {"logprobs": 1}, {"top_k": 20, "presence_penalty": 1.0}]


def validator_of(schema: dict[str, object]) -> jsonschema.Draft7Validator | jsonschema.Draft202012Validator:
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def answer_to(vocabulary: Vocabulary, constraint: Constraint, seed: int) -> str:
    answer = generate(vocabulary, constraint, np.random.default_rng(seed), **PARAMS[seed % len(PARAMS)])
    assert answer.finish_reason == "stop"
    if seed % len(PARAMS) == 2:
        assert answer.num_steps == len(answer.tokens), "a forced token has no log probability"
    return answer.text


@pytest.mark.parametrize("first", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(25, NUM_SCHEMAS, 25))])
def test_every_answer_is_valid(first: int) -> None:
    vocabulary = small_vocabulary()
    for seed in range(first, first + 25):
        schema = SchemaMaker(seed).make()
        text = answer_to(vocabulary, vocabulary.compiler.json_schema(schema), seed)
        validator_of(schema).validate(json.loads(text))


@pytest.mark.slow
def test_every_answer_after_thinking_is_valid() -> None:
    vocabulary = small_vocabulary()
    num_thought = 0
    for seed in range(40):
        schema, is_open = SchemaMaker(seed).make(), seed % 2 == 0
        text = answer_to(vocabulary, vocabulary.compiler.json_schema(schema, Thinking(QWEN3, is_open)), seed)
        thought, closer, answer = text.partition("</think>\n\n")
        assert closer or not is_open
        num_thought += bool(closer)
        validator_of(schema).validate(json.loads(answer if closer else thought))
    assert num_thought > 20


@pytest.mark.skipif(PUBLISHED_FOLDER is None, reason="PUBLISHED_TOKENIZERS names no folder with published tokenizers")
@pytest.mark.parametrize("name", ["gemma-4", "qwen2"])
def test_every_answer_is_valid_with_published_tokenizers(name: str) -> None:
    vocabulary = published_vocabulary(name)
    for seed in range(10):
        schema = SchemaMaker(seed).make()
        text = answer_to(vocabulary, vocabulary.compiler.json_schema(schema), seed)
        validator_of(schema).validate(json.loads(text))
