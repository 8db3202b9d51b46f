"""The state of one request: its tokens, its progress, its consumer of logits, and its end."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from kv_cache import PageHashes, RequestPages
from pipelines.sampling.params import SamplingParams

if TYPE_CHECKING:
    from pipelines.engine.consumers import StepConsumer
    from pipelines.sampling.log_probabilities import TokenLogProbs

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(eq=False)
class ImageSpan:
    """An image in a prompt: the positions start to end of its tokens, which are computed in one step.

    pixel_values: as the model's processor made them; None once the model has computed `features`, whose form is the
    model's own. image_hash: 32 bytes that identify the content.
    """

    start: int
    end: int
    pixel_values: npt.NDArray[Any] | None
    image_hash: bytes
    features: Any = None

    @property
    def hash_keys(self) -> list[int]:
        """Hash keys of the placeholder tokens: they share one token id, so the image's hash, repeated, replaces it."""
        words = array("q", self.image_hash)
        return [words[i % len(words)] for i in range(self.end - self.start)]


@dataclass(frozen=True)
class TextChunk:
    """The output of one step of a request; text may lag behind the tokens while a character is incomplete.

    finish_reason: set in the last chunk. error: the exception behind the finish reason "error".
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogProbs, ...] = ()
    finish_reason: FinishReason | None = None
    error: Exception | None = None


@dataclass
class RequestTimes:
    """When a request reached its stages, by `time.monotonic`, in seconds; None: it has not.

    submitted: the engine has it. scheduled: it was first admitted to the steps. first_token, last_token: of its output
    so far, once they are chosen.
    """

    submitted: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    def note_token(self) -> None:
        """Notes that there is a new token, or several at once."""
        self.last_token = time.monotonic()
        if self.first_token is None:
            self.first_token = self.last_token

    @property
    def queue_s(self) -> float | None:
        """Seconds from submission until it was scheduled."""
        return _seconds(self.submitted, self.scheduled)

    @property
    def prefill_s(self) -> float | None:
        """Seconds from being scheduled to the first token."""
        return _seconds(self.scheduled, self.first_token)

    @property
    def decode_s(self) -> float | None:
        """Seconds from the first token to the last one."""
        return _seconds(self.first_token, self.last_token)

    @property
    def inference_s(self) -> float | None:
        """Seconds from being scheduled to the last token."""
        return _seconds(self.scheduled, self.last_token)


def _seconds(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


@dataclass(eq=False)
class TextContext:
    """The one object of a request, from submission to end. The scheduler holds it, and a step's plan lists it.

    tokens: the prompt and the output. consumer: takes the logits of each step; None for a context that is driven by
    hand. images: those of the prompt, in order. max_chunk_tokens: the most tokens of it that one step computes; None:
    as many as fit. pages: its part of the KV cache while it runs, which counts the computed tokens. page_hashes: hashes
    of its full pages; None: no prefix is reused. num_scheduled_tokens: tokens of it that the planned step computes.
    num_cached_tokens: tokens of its prompt that the cache had when it first ran; None: it has not run yet.
    pending_row: its row in a launched step that chooses its next token, which the host does not know yet.
    chunks: output that has not been read yet. finish_reason: None until the request ends. error: the exception that
    ended it, if one did. arrival: its place in the order of submission. times: of its stages.
    """

    request_id: str
    tokens: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    consumer: StepConsumer | None = None
    images: Sequence[ImageSpan] = ()
    max_chunk_tokens: int | None = None
    pages: RequestPages | None = None
    page_hashes: PageHashes | None = None
    num_scheduled_tokens: int = 0
    num_cached_tokens: int | None = None
    pending_row: int | None = None
    chunks: deque[TextChunk] = field(default_factory=deque)
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    arrival: int = 0
    times: RequestTimes = field(default_factory=RequestTimes)
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.tokens)
        self.num_prompt_tokens = len(self.tokens)

    @property
    def is_finished(self) -> bool:
        """Whether the request has ended: no more chunks will be added."""
        return self.finish_reason is not None

    @property
    def num_computed_tokens(self) -> int:
        """Number of tokens whose keys and values are in the cache."""
        return 0 if self.pages is None else self.pages.num_computed_tokens

    @property
    def num_tokens(self) -> int:
        """Number of tokens of prompt and output, with the one that is pending."""
        return len(self.tokens) + (self.pending_row is not None)

    @property
    def num_remaining_tokens(self) -> int:
        """Number of tokens not yet computed."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        """Number of tokens that were generated."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def scheduled_tokens(self) -> list[int]:
        """The tokens of the planned step; 0 in place of the pending one, which is on the device."""
        end = self.num_computed_tokens + self.num_scheduled_tokens
        return self.tokens[self.num_computed_tokens : end] + [0] * (end - len(self.tokens))

    @property
    def next_image(self) -> ImageSpan | None:
        """The image whose tokens are computed next; None if text is next."""
        done = self.num_computed_tokens
        return next((image for image in self.images if image.start <= done < image.end), None)

    @property
    def is_at_image(self) -> bool:
        """Whether the next step computes an image, and not text."""
        return self.next_image is not None

    @property
    def num_ready_tokens(self) -> int:
        """Number of tokens that the next step may compute: text up to the next image, or an image to its end."""
        done = self.num_computed_tokens
        if (image := self.next_image) is not None:
            return image.end - done
        end = next((image.start for image in self.images if image.start > done), self.num_tokens)
        return min(end - done, self.max_chunk_tokens or end)

    def update_page_hashes(self) -> None:
        """Hashes the pages that have become full since the last call."""
        if self.page_hashes is not None:
            self.page_hashes.extend(self._hash_keys(self.page_hashes.num_tokens, len(self.tokens)))

    def _hash_keys(self, start: int, end: int) -> list[int]:
        """The tokens start to end, with the tokens of images replaced by their hash keys."""
        keys = self.tokens[start:end]
        for image in self.images:
            first, last = max(start, image.start), min(end, image.end)
            if first < last:
                keys[first - start : last - start] = image.hash_keys[first - image.start : last - image.start]
        return keys

    def max_total_tokens(self, max_length: int) -> int:
        """Most tokens that prompt and output can have together, within the model's `max_length`."""
        if self.params.max_new_tokens is None:
            return max_length
        return min(max_length, self.num_prompt_tokens + self.params.max_new_tokens)

    def finish_reason_after(
        self, token: int, eos_token_ids: Collection[int], max_length: int
    ) -> Literal["stop", "length"] | None:
        """Returns the reason if the request ends with `token`, the last one appended; None if it continues."""
        if self.num_output_tokens > self.params.min_tokens and token in self.params.stop_ids(eos_token_ids):
            return "stop"
        return "length" if len(self.tokens) >= self.max_total_tokens(max_length) else None

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        """Ends the request and frees the pixels and features of its images; its output stays."""
        self.finish_reason, self.error = reason, error
        for image in self.images:
            image.pixel_values = image.features = None
