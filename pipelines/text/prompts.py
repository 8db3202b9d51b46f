"""Prompts to token ids, checked against what the model takes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from pipelines.context import ImageSpan
from pipelines.errors import InputError
from pipelines.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImagePrompt:
    """Text in which a placeholder stands for each image, in their order; `load_image` reads images."""

    text: str
    images: Sequence[Image]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model takes it. images: where in `tokens` each of them is."""

    tokens: list[int]
    images: tuple[ImageSpan, ...] = ()


Prompt = str | Sequence[int] | ImagePrompt | EncodedPrompt
"""Text, token ids that are taken as they are, text with images, or what the encoder made of one of these."""


class ProcessedImage(Protocol):
    """pixel_values: what the vision tower takes. digest: 32 bytes that tell it from every other."""

    pixel_values: npt.NDArray[Any]
    digest: bytes


class ImageProcessor(Protocol):
    """What an architecture knows of images. placeholder: what stands for one in a prompt's text."""

    placeholder: str
    image_token_id: int
    num_image_tokens: int

    def process(self, image: Image) -> ProcessedImage: ...

    def expand_placeholders(self, text: str) -> str:
        """With each placeholder replaced by the tokens of an image and what surrounds them."""


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes and checks prompts; it needs no weights, so that a wrong prompt is found before anything is compiled.

    vocab_size: of the model. max_length: tokens of prompt and answer. is_instruction_model: chat is its default.
    load_image_processor: None for a model that takes text alone.
    """

    tokenizer: TextTokenizer
    vocab_size: int
    max_length: int
    is_instruction_model: bool
    load_image_processor: Callable[[], ImageProcessor] | None = None

    def encode(self, prompt: Prompt, num_new: int = 1) -> EncodedPrompt:
        """Token ids, of which there must be some, with room for `num_new` more.

        Raises:
            InputError: An empty or overlong prompt, a token id outside the vocabulary, images that the model does not
                take, or another number of them than the text has places for.
        """
        if isinstance(prompt, EncodedPrompt):
            return prompt
        if isinstance(prompt, ImagePrompt):
            return self._encode_text(prompt.text, prompt.images, num_new)
        if isinstance(prompt, str):
            return self._encode_text(prompt, (), num_new)
        return EncodedPrompt(self._checked([operator.index(token) for token in prompt], num_new))

    def encode_chat(
        self, messages: str | Sequence[Mapping[str, Any]], images: Sequence[Image] = (), **template_kwargs: Any
    ) -> EncodedPrompt:
        """A conversation, or one user turn, in the model's chat template, up to where its answer begins.

        images: for the `{"type": "image"}` parts of the messages, or for the one turn, in front of its text if that
        has no placeholders. Checked as by `encode`.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": self._user_content(messages, len(images))}]
        text = self.tokenizer.render_chat(messages, **template_kwargs)
        return self._encode_text(text, images, add_special_tokens=False)  # the template writes them itself

    def _user_content(self, text: str, num_images: int) -> str | list[dict[str, str]]:
        if not num_images or self._image_processor.placeholder in text:
            return text
        return [{"type": "image"}] * num_images + [{"type": "text", "text": text}]

    def _encode_text(
        self, text: str, images: Sequence[Image], num_new: int = 1, add_special_tokens: bool = True
    ) -> EncodedPrompt:
        if images:
            text = self._with_image_tokens(text, len(images))
        tokens = self._checked(self.tokenizer.encode(text, add_special_tokens=add_special_tokens), num_new)
        return EncodedPrompt(tokens, self._spans(tokens, images) if images else ())

    def _with_image_tokens(self, text: str, num_images: int) -> str:
        processor = self._image_processor
        if (num_places := text.count(processor.placeholder)) != num_images:
            raise InputError(
                f"the prompt has {num_places} times {processor.placeholder}, but {num_images} images are given: "
                "write it once for each image"
            )
        return processor.expand_placeholders(text)

    def _spans(self, tokens: Sequence[int], images: Sequence[Image]) -> tuple[ImageSpan, ...]:
        processor = self._image_processor
        runs, start = [], 0
        for token, run in groupby(tokens):
            end = start + sum(1 for _ in run)
            if token == processor.image_token_id:
                runs.append((start, end))
            start = end
        if [end - start for start, end in runs] != [processor.num_image_tokens] * len(images):
            raise InputError("the prompt has image tokens of its own: leave them out, they are put in for each image")
        processed = [processor.process(image) for image in images]
        return tuple(
            ImageSpan(start, end, image.pixel_values, image.digest)
            for (start, end), image in zip(runs, processed, strict=True)
        )

    @cached_property
    def _image_processor(self) -> ImageProcessor:
        if self.load_image_processor is None:
            raise InputError("the model takes text alone: leave the images out, or choose a model that reads images")
        return self.load_image_processor()

    def _checked(self, tokens: list[int], num_new: int) -> list[int]:
        if not tokens:
            raise InputError("the prompt is empty: give some text or token ids")
        if wrong := [token for token in tokens if not 0 <= token < self.vocab_size]:
            raise InputError(f"token id {wrong[0]} is outside the vocabulary of {self.vocab_size}")
        if len(tokens) + num_new > self.max_length:
            raise InputError(
                f"the prompt has {len(tokens)} tokens, and the limit is {self.max_length} with at least {num_new} new: "
                "shorten it or raise --max-length"
            )
        return tokens
