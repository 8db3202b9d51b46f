"""Encoding of prompts to token ids, with checks against the model's limits and modalities."""

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
from pipelines.text.guard import ControlTokenGuard
from pipelines.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

_IMAGE_TYPES = frozenset({"image", "image_url"})


@dataclass(frozen=True)
class ImagePrompt:
    """Text with a placeholder for each image, in order; `load_image` reads images."""

    text: str
    images: Sequence[Image]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as token ids. images: the place of each image in `tokens`, and its pixels."""

    tokens: list[int]
    images: tuple[ImageSpan, ...] = ()


Prompt = str | Sequence[int] | ImagePrompt | EncodedPrompt
"""A prompt: text, token ids, text with images, or an encoded prompt."""


class ProcessedImage(Protocol):
    """An image as the vision tower takes it. image_hash: 32 bytes that identify the content."""

    pixel_values: npt.NDArray[Any]
    image_hash: bytes


class ImageProcessor(Protocol):
    """An architecture's processing of images.

    placeholder: the text that stands for an image in a prompt. image_token_id: the id of the tokens of an image, of
    which each has num_image_tokens.
    """

    placeholder: str
    image_token_id: int
    num_image_tokens: int

    def process(self, image: Image) -> ProcessedImage:
        """Resizes and normalizes an image of any size."""

    def expand_placeholders(self, text: str) -> str:
        """Replaces each placeholder by the tokens of an image and the text around them."""


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes and checks prompts; it needs no weights, so that a wrong prompt is found before anything is compiled.

    vocab_size: of the model. max_length: tokens of prompt and output. is_instruction_model: whether prompts are turns
    of a chat by default. load_image_processor: None for a model that reads text only.
    """

    tokenizer: TextTokenizer
    vocab_size: int
    max_length: int
    is_instruction_model: bool
    load_image_processor: Callable[[], ImageProcessor] | None = None

    def encode(self, prompt: Prompt, num_new: int = 1) -> EncodedPrompt:
        """Converts a prompt to token ids, at least one, with room for `num_new` more.

        An encoded prompt is checked again: it may come from any source, or be for another model.

        Raises:
            InputError: The prompt is empty or too long, a token id is outside the vocabulary, the model does not read
                images, or images and their places in the prompt do not match.
        """
        if isinstance(prompt, EncodedPrompt):
            tokens = self._checked(prompt.tokens, num_new)
            return EncodedPrompt(tokens, self._checked_images(tokens, prompt.images))
        if isinstance(prompt, ImagePrompt):
            return self._encode_text(prompt.text, prompt.images, num_new)
        if isinstance(prompt, str):
            return self._encode_text(prompt, (), num_new)
        return EncodedPrompt(self._checked(prompt, num_new))

    def encode_chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        images: Sequence[Image] = (),
        *,
        allow_control_tokens: bool = False,
        **template_kwargs: Any,
    ) -> EncodedPrompt:
        """Converts a conversation, or one user turn, in the model's chat template, up to the start of its answer.

        Control tokens that users spell are encoded as plain text, by the rules of `TextTokenizer.encode_chat`. With
        images, that holds for placeholders in all messages, the assistant's included; in one turn that is a string
        placeholders count, since the caller put them there.

        Args:
            messages: Messages with role and content, or the text of one user turn.
            images: Images for the `{"type": "image"}` parts of the messages, or for the placeholders in the one turn;
                they precede its text if it has none.
            allow_control_tokens: Whether control tokens and placeholders count wherever they are spelled.
            **template_kwargs: As for `TextTokenizer.encode_chat`.

        Raises:
            InputError: As `encode` and `TextTokenizer.encode_chat`.
        """
        is_turn = isinstance(messages, str)
        guard = ControlTokenGuard({}) if allow_control_tokens else self._guard(bool(images), may_place=is_turn)
        if isinstance(messages, str):
            messages = [{"role": "user", "content": self._user_content(messages, len(images))}]
        text = self.tokenizer.render_chat(messages, guard, **template_kwargs)
        if images or any(map(_has_image, messages)):
            text = self._with_image_tokens(text, len(images))
        stretches = guard.stretches(text)
        self._check_size("".join(stretch for stretch, _ in stretches))
        return self._encoded(self.tokenizer.encode_stretches(stretches, guard), images)

    def _guard(self, has_images: bool, may_place: bool) -> ControlTokenGuard:
        if not has_images:
            return self.tokenizer.guard()
        placeholder, image_token_id = self._image_processor.placeholder, self._image_processor.image_token_id
        image_token = self.tokenizer.decode([image_token_id], skip_special_tokens=False)
        return self.tokenizer.guard([placeholder, image_token], exempt=placeholder if may_place else "")

    def _user_content(self, text: str, num_images: int) -> str | list[dict[str, str]]:
        if not num_images or self._image_processor.placeholder in text:
            return text
        return [{"type": "image"}] * num_images + [{"type": "text", "text": text}]

    def _encode_text(self, text: str, images: Sequence[Image], num_new: int) -> EncodedPrompt:
        if images:
            text = self._with_image_tokens(text, len(images))
        self._check_size(text, num_new)
        return self._encoded(self.tokenizer.encode(text), images, num_new)

    def _encoded(self, tokens: list[int], images: Sequence[Image], num_new: int = 1) -> EncodedPrompt:
        tokens = self._checked(tokens, num_new)
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
        processor, runs = self._image_processor, self._image_runs(tokens)
        if [end - start for start, end in runs] != [processor.num_image_tokens] * len(images):
            raise InputError("the prompt has image tokens of its own: leave them out, they are put in for each image")
        processed = [processor.process(image) for image in images]
        return tuple(
            ImageSpan(start, end, image.pixel_values, image.image_hash)
            for (start, end), image in zip(runs, processed, strict=True)
        )

    def _checked_images(self, tokens: Sequence[int], images: tuple[ImageSpan, ...]) -> tuple[ImageSpan, ...]:
        if not images:
            return ()
        num_image_tokens, runs = self._image_processor.num_image_tokens, self._image_runs(tokens)
        for image in images:
            if (image.start, image.end) not in runs or image.end - image.start != num_image_tokens:
                raise InputError(
                    f"an image is said to be at the tokens {image.start} to {image.end}, which are not its "
                    f"{num_image_tokens} image tokens: take tokens and images from one `encode`"
                )
        if [(image.start, image.end) for image in images] != runs:
            raise InputError(
                f"the prompt has {len(runs)} runs of image tokens, but {len(images)} images are given or their order "
                "is another: take tokens and images from one `encode`"
            )
        return images

    def _image_runs(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Start and end of each run of image tokens in a prompt."""
        runs, start = [], 0
        for token, run in groupby(tokens):
            end = start + sum(1 for _ in run)
            if token == self._image_processor.image_token_id:
                runs.append((start, end))
            start = end
        return runs

    @cached_property
    def _image_processor(self) -> ImageProcessor:
        if self.load_image_processor is None:
            raise InputError("the model takes text alone: leave the images out, or choose a model that reads images")
        return self.load_image_processor()

    def _check_size(self, text: str, num_new: int = 1) -> None:
        """Refuses a text that is certain to be too long, before it is tokenized for seconds or minutes."""
        num_bytes = len(text.encode(errors="replace"))
        if num_bytes <= self.max_length - num_new:
            return
        num_tokens = self.tokenizer.min_num_tokens(text)
        if num_tokens + num_new > self.max_length:
            raise self._too_long(f"{num_bytes} bytes, at least {num_tokens} tokens", num_new)

    def _checked(self, tokens: Sequence[int], num_new: int) -> list[int]:
        if len(tokens) == 0:
            raise InputError("the prompt is empty: give some text or token ids")
        if len(tokens) + num_new > self.max_length:
            raise self._too_long(f"{len(tokens)} tokens", num_new)
        tokens = [operator.index(token) for token in tokens]
        if wrong := [token for token in tokens if not 0 <= token < self.vocab_size]:
            raise InputError(f"token id {wrong[0]} is outside the vocabulary of {self.vocab_size}")
        return tokens

    def _too_long(self, size: str, num_new: int) -> InputError:
        return InputError(
            f"the prompt has {size}, and the limit is {self.max_length} with at least {num_new} new: "
            "shorten it or raise max_length (--max-length)"
        )


def _has_image(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else ()
    return any(isinstance(part, Mapping) and part.get("type") in _IMAGE_TYPES for part in parts)
