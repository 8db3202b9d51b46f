"""Answers that are held to a grammar, from random logits: a small tokenizer, and the loop of one request."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines.context import TextContext
from pipelines.engine.consumers import NextToken
from pipelines.engine.step import choose_tokens
from pipelines.sampling.constraints import Constraint, ConstraintCompiler
from pipelines.sampling.params import SamplingParams
from pipelines.sampling.sampler import Sampler
from pipelines.text.detokenizer import StopChecker
from pipelines.text.tokenizer import TextTokenizer

PUBLISHED_FOLDER = os.environ.get("PUBLISHED_TOKENIZERS")
CORPUS = [
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}',
    '{"a": 1, "b": [1, 2.5, -3e10], "c": null, "d": true, "e": false}, {"name": "x", "parameters": {"größe": "é"}}',
    "The quick brown fox jumps over the lazy dog. It is 5 o'clock, and all is well in the world: 中文 text too.",
    "call:get_weather{city:x,days:3} thought\nHm, let me think about this for a while.\n\n",
] * 20
MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
GEMMA4_MARKERS = ['<|"|>', "<|tool_call>", "<tool_call|>", "<|channel>", "<channel|>"]
SIZE_PADDING = 7
"""Logits for which there is no token, as models have them."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with a compiler of grammars for it. vocab_size: of the model."""

    text: TextTokenizer
    vocab_size: int
    compiler: ConstraintCompiler
    closes_V: NDArray[np.float32]
    """How much each token helps to end a string, an object or an answer, so that random answers come to an end."""

    def ids(self, text: str) -> list[int]:
        return self.text.encode(text, add_special_tokens=False)


def vocabulary_of(hf: Any, eos_token_ids: Sequence[int] = ()) -> Vocabulary:
    text = TextTokenizer(hf, eos_token_ids)
    vocab_size = len(hf) + SIZE_PADDING
    closes_V = np.zeros(vocab_size, np.float32)
    for token_id in range(len(hf)):
        shown = text.decode([token_id], skip_special_tokens=False).strip()
        is_end = shown.startswith('"') or shown in MARKERS + GEMMA4_MARKERS or token_id in text.eos_token_ids
        is_inner = shown.startswith("@")  # of an email address
        closes_V[token_id] = 1 if is_end else 0.8 if is_inner else 0.5 if shown and set(shown) <= set("}]") else 0
    return Vocabulary(text, vocab_size, ConstraintCompiler(text, vocab_size, text.eos_token_ids), closes_V)


@functools.cache
def small_vocabulary() -> Vocabulary:
    """Byte-level BPE of a thousand tokens, with the markers of Qwen 3 and Gemma 4."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(["<|im_end|>", "<|endoftext|>"])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKERS + GEMMA4_MARKERS])
    return vocabulary_of(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    )


@functools.cache
def published_vocabulary(name: str) -> Vocabulary:
    """A published tokenizer, in the folder that PUBLISHED_TOKENIZERS names."""
    assert PUBLISHED_FOLDER is not None
    hf = AutoTokenizer.from_pretrained(Path(PUBLISHED_FOLDER) / name)
    if name == "qwen2":  # whose vocabulary Qwen 3 has, with these
        hf.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKERS])
    return vocabulary_of(hf)


@dataclass
class Answer:
    """A request that has ended. num_steps: of the model; fewer than tokens where some are forced."""

    text: str
    tokens: list[int]
    num_steps: int
    finish_reason: str | None
    pieces: list[str]


def generate(
    vocabulary: Vocabulary,
    constraint: Constraint,
    rng: np.random.Generator,
    new_row: Callable[[int], NDArray[np.float32]] | None = None,
    max_steps: int = 3000,
    **params: Any,
) -> Answer:
    """Runs one request to its end over random logits, in which tokens that close something become likelier."""
    resolved = SamplingParams(**{"temperature": 1.0, "seed": 0, "max_new_tokens": max_steps, **params}).resolved()
    eos = vocabulary.text.eos_token_ids
    sampler = Sampler(resolved, [1], eos, constraint)
    stops = StopChecker(resolved.stop)
    consumer = NextToken(sampler, vocabulary.text.detokenizer(), stops, eos, 1_000_000, None, constraint)
    context = TextContext("request", [1], resolved, consumer)
    answer = Answer("", [], 0, None, [])
    while answer.finish_reason is None:
        consumer.prepare()
        logits_V = rng.normal(0, 2, vocabulary.vocab_size).astype(np.float32)
        logits_V += vocabulary.closes_V * answer.num_steps / 10
        row = logits_V if new_row is None else new_row(answer.num_steps)
        outputs: Any = SimpleNamespace(
            context=context, start=0, is_complete=True, next_logits_V=row, greedy_token=int(row.argmax())
        )
        outputs.choice = outputs.log_probs = None
        choose_tokens([outputs])
        chunk = consumer.consume(context, outputs)
        assert chunk is not None
        answer.text += chunk.text
        answer.pieces.append(chunk.text)
        answer.num_steps += 1
        answer.finish_reason = chunk.finish_reason
    answer.tokens = context.tokens[1:]
    return answer
