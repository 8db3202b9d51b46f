"""The state of one request."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy.typing as npt

from pipelines.sampling.params import SamplingParams

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class ImageSpan:
    """An image in a prompt: the places start to end of its tokens, which are computed in one step.

    pixel_values: as the model's processor made them. digest: 32 bytes that tell the image from every other.
    """

    start: int
    end: int
    pixel_values: npt.NDArray[Any]
    digest: bytes

    @property
    def keys(self) -> list[int]:
        """What stands for its tokens, which are all the same, where prompts are compared: its digest, over and over."""
        words = array("q", self.digest)
        return [words[i % len(words)] for i in range(self.end - self.start)]


@dataclass(eq=False)
class TextContext:
    """A request's tokens, and how far the model has come with them.

    tokens: the prompt and what was generated. num_computed: how many have their keys and values in the cache.
    num_scheduled: how many the current step computes. salt: requests with different salts share no cached prefix.
    max_chunk: how many one step may compute; None: as many as fit in it. images: those of the prompt, in order.
    """

    request_id: str
    tokens: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    salt: bytes = b""
    max_chunk: int | None = None
    images: Sequence[ImageSpan] = ()
    num_computed: int = 0
    num_scheduled: int = 0
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.tokens)
        self.prompt_length = len(self.tokens)

    @property
    def next_chunk(self) -> list[int]:
        """The tokens of the current step."""
        return self.tokens[self.num_computed : self.num_computed + self.num_scheduled]

    @property
    def next_image(self) -> ImageSpan | None:
        """The image whose tokens are next, if it is not text."""
        return next((image for image in self.images if image.start <= self.num_computed < image.end), None)

    def next_count(self, budget: int) -> int:
        """How many tokens the next step can compute: text up to the next image, or an image to its end, or 0."""
        if (image := self.next_image) is not None:
            return count if (count := image.end - self.num_computed) <= budget else 0
        text_end = next((image.start for image in self.images if image.start > self.num_computed), len(self.tokens))
        return min(text_end - self.num_computed, self.max_chunk or budget, budget)

    def cache_keys(self, start: int, end: int) -> list[int]:
        """The tokens start to end, in which an image's are replaced by what tells it from other images."""
        keys = self.tokens[start:end]
        for image in self.images:
            first, last = max(start, image.start), min(end, image.end)
            if first < last:
                keys[first - start : last - start] = image.keys[first - image.start : last - image.start]
        return keys

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def remaining(self) -> int:
        """Tokens not yet computed."""
        return len(self.tokens) - self.num_computed

    @property
    def completes_with_this_step(self) -> bool:
        """Whether the step computes the last token there is, so that its logits choose the next."""
        return self.num_computed + self.num_scheduled == len(self.tokens)

    def max_total_tokens(self, max_length: int) -> int:
        """How many tokens prompt and answer may have together, where the model allows `max_length`."""
        if self.params.max_new_tokens is None:
            return max_length
        return min(max_length, self.prompt_length + self.params.max_new_tokens)

    def advance(self) -> None:
        """The step has run."""
        self.num_computed += self.num_scheduled
        self.num_scheduled = 0

    def append(self, token: int) -> None:
        """Take a generated token."""
        self.tokens.append(token)

    def reset(self) -> None:
        """Preempted: the cache holds nothing of this request any more."""
        self.num_computed = self.num_scheduled = 0

    def finish_reason(self, token: int, eos_token_ids: Collection[int], max_length: int) -> FinishReason | None:
        """Why the request ends with `token`, the last one appended; None: it goes on."""
        if self.num_generated > self.params.min_tokens and token in self.params.stop_ids(eos_token_ids):
            return "stop"
        return "length" if len(self.tokens) >= self.max_total_tokens(max_length) else None
