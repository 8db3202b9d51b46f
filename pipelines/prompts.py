"""Prompts to token ids, checked against what the model takes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import InputError
from pipelines.tokenizer import TextTokenizer

Prompt = str | Sequence[int]
"""Text, or token ids that are taken as they are."""


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes and checks prompts; it needs no weights, so that a wrong prompt is found before anything is compiled.

    vocab_size: of the model. max_length: tokens of prompt and answer. is_instruction_model: chat is its default.
    """

    tokenizer: TextTokenizer
    vocab_size: int
    max_length: int
    is_instruction_model: bool

    def encode(self, prompt: Prompt, num_new: int = 1) -> list[int]:
        """Token ids, of which there must be some, with room for `num_new` more.

        Raises:
            InputError: An empty or overlong prompt, or a token id outside the vocabulary.
        """
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [operator.index(t) for t in prompt]
        if len(prompt) == 0 or not tokens:
            raise InputError("the prompt is empty: give some text or token ids")
        if wrong := [token for token in tokens if not 0 <= token < self.vocab_size]:
            raise InputError(f"token id {wrong[0]} is outside the vocabulary of {self.vocab_size}")
        if len(tokens) + num_new > self.max_length:
            raise InputError(
                f"the prompt has {len(tokens)} tokens, and the limit is {self.max_length} with at least {num_new} new: "
                "shorten it or raise --max-length"
            )
        return tokens

    def encode_chat(self, prompt: str) -> list[int]:
        """One user turn in the model's chat template, up to where its answer begins; checked as by `encode`."""
        return self.encode(self.tokenizer.encode_chat([{"role": "user", "content": prompt}]))
