"""A fake model that writes given texts, for tests and pictures in which what it says matters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
from fake_model import EOS, IMAGE, VOCAB_SIZE, FakeInputs, FakeModel
from kv_caches import new_cache
from serving import ChatTokenizer, PictureProcessor

from pipelines import PipelineConfig
from pipelines.pipeline_model import ModelOutputs
from pipelines.text.detokenizer import IncrementalDetokenizer
from pipelines.text.prompts import PromptEncoder
from pipelines.text_generation import TextGenerationPipeline

IMAGE_CHARACTER = "\ue000"
WORD = 1  # the token of every word that is written


class Script:
    """Answers, a word a token, in the order in which requests come; the last one is repeated."""

    def __init__(self, answers: Sequence[str]) -> None:
        self._answers = [re.findall(r"\s*\S+|\s+", answer) for answer in answers]
        self._numbers: dict[str, int] = {}

    def words(self, number: int) -> Sequence[str]:
        return self._answers[min(number, len(self._answers) - 1)]

    def next_token(self, request_id: str, num_output_tokens: int) -> int:
        number = self._numbers.setdefault(request_id, len(self._numbers))
        return WORD if num_output_tokens < len(self.words(number)) else EOS


class ScriptedDetokenizer(IncrementalDetokenizer):
    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(lambda tokens: "")
        self._words = iter(words)

    def push(self, token_id: int) -> str:
        return "" if token_id == EOS else next(self._words)


class ScriptedTokenizer(ChatTokenizer):
    """Takes any text, a token a character. Its chat template has the marks of Qwen 3's thinking."""

    chat_template = "</think>"

    def __init__(self, script: Script) -> None:
        super().__init__()
        self._script, self._count = script, count()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [IMAGE if character == IMAGE_CHARACTER else 1 + ord(character) % 60 for character in text]

    def detokenizer(self, skip_special_tokens: bool = True) -> IncrementalDetokenizer:
        return ScriptedDetokenizer(self._script.words(next(self._count)))


class ScriptedPictures(PictureProcessor):
    """Begins each image with a token of text, so that images can stand side by side."""

    image_token = IMAGE_CHARACTER

    def expand_placeholders(self, text: str) -> str:
        return text.replace(self.placeholder, "[" + self.image_token * self.num_image_tokens)


class ScriptedModel(FakeModel):
    """Checks the cache as the fake model does, and then gives the script's tokens."""

    def __init__(self, num_pages: dict[str, int], script: Script) -> None:
        super().__init__(num_pages)
        self.script = script

    def _outputs(self, inputs: FakeInputs, rows: list[npt.NDArray[np.uint64]], num_new: list[int]) -> ModelOutputs:
        outputs = super()._outputs(inputs, rows, num_new)
        for row, context in enumerate(inputs.contexts):
            num_tokens = context.num_computed_tokens + context.num_scheduled_tokens
            token = self.script.next_token(context.request_id, num_tokens - context.num_prompt_tokens)
            outputs.greedy_tokens.to_numpy()[row] = token
            outputs.next_token_logits.to_numpy()[row] = 100.0 * (np.arange(VOCAB_SIZE) == token)
        return outputs


def scripted_pipeline(*answers: str, takes_images: bool = True, **settings: Any) -> TextGenerationPipeline:
    """A pipeline that gives these answers. settings: of PipelineConfig."""
    num_pages, script = {"full": 200, "sliding": 200}, Script(answers)
    config = PipelineConfig(**{"max_length": 4000, "max_batch_size": 8, "max_batch_tokens": 64, **settings})
    assert config.max_length is not None
    processor = ScriptedPictures if takes_images else None
    prompts = PromptEncoder(ScriptedTokenizer(script), VOCAB_SIZE, config.max_length, False, processor)  # type: ignore[arg-type]
    cache = new_cache(**num_pages, window=200, caching=config.enable_prefix_caching)
    return TextGenerationPipeline(config, ScriptedModel(num_pages, script), cache, prompts)  # type: ignore[arg-type]
