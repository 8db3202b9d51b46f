"""The creation of requests: from a prompt and its parameters to a TextContext."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kv_cache import PageHashes
from pipelines.context import ImageSpan, TextContext
from pipelines.engine.consumers import NextToken, PromptLogits, PromptLogProbs
from pipelines.sampling.constraints import Constraint
from pipelines.sampling.defaults import SamplingDefaults
from pipelines.sampling.params import ResolvedSamplingParams, SamplingParams
from pipelines.sampling.sampler import Sampler
from pipelines.text.detokenizer import StopChecker
from pipelines.text.prompts import EncodedPrompt, Prompt, PromptEncoder

STEP_LOGITS_BYTES = 256 * 2**20
"""Most logits that a step returns for requests for the logits of all their positions."""

OnSlab = Callable[[int, npt.NDArray[np.float32]], Any]
"""A function that is called with a position and the logits [t, V] of it and the following ones."""


@dataclass
class RequestFactory:
    """Makes the requests of one pipeline.

    sampling_defaults: for the parameters that a request leaves open. page_size: that of the KV cache if prefixes are
    reused; None: they are not. max_batch_size: rows of a step, which share STEP_LOGITS_BYTES.
    """

    prompts: PromptEncoder
    sampling_defaults: SamplingDefaults
    page_size: int | None
    max_batch_size: int
    _ids: itertools.count[int] = field(default_factory=itertools.count)

    def generation(self, prompt: Prompt, params: SamplingParams, constraint: Constraint | None = None) -> TextContext:
        """Makes a request for new tokens. constraint: a grammar for them, which no other request may have.

        Raises:
            InputError: The prompt is empty or too long, or a token id is outside the vocabulary.
        """
        encoded, resolved = self.prompts.encode(prompt), params.resolved(self.sampling_defaults)
        resolved.check_vocabulary(self.prompts.vocab_size)
        tokenizer = self.prompts.tokenizer
        num_top = resolved.prompt_logprobs
        consumer = NextToken(
            Sampler(resolved, encoded.tokens, tokenizer.eos_token_ids, constraint),
            tokenizer.detokenizer(skip_special_tokens=resolved.skip_special_tokens),
            StopChecker(resolved.stop),
            tokenizer.eos_token_ids,
            self.prompts.max_length,
            None if num_top is None else PromptLogProbs(num_top),
            constraint,
        )
        return TextContext(
            str(next(self._ids)),
            encoded.tokens,
            resolved,
            consumer,
            _own_images(encoded),
            max_chunk_tokens=None if num_top is None else self._max_slab_tokens,
            page_hashes=self._page_hashes(resolved),
        )

    def logits(self, encoded: EncodedPrompt, on_slab: OnSlab) -> TextContext:
        """Makes a request for the logits of all its positions, slab by slab; it reuses no prefix."""
        return TextContext(
            str(next(self._ids)),
            encoded.tokens,
            SamplingParams(max_new_tokens=1).resolved(),
            PromptLogits(on_slab),
            _own_images(encoded),
            max_chunk_tokens=self._max_slab_tokens,
        )

    def _page_hashes(self, params: ResolvedSamplingParams) -> PageHashes | None:
        return None if self.page_size is None else PageHashes(self.page_size, (params.cache_salt or "").encode())

    @property
    def _max_slab_tokens(self) -> int:
        """Most tokens of one step for a request for the logits of all its positions."""
        return max(1, STEP_LOGITS_BYTES // (4 * self.prompts.vocab_size * self.max_batch_size))


def _own_images(prompt: EncodedPrompt) -> list[ImageSpan]:
    """Copies the images for the request, which drops their pixels; the caller's prompt stays as it is."""
    return [dataclasses.replace(image) for image in prompt.images]
