"""The pipeline as its users see it: prompts in, text out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from kv_cache import KVCacheManager, PageHashes, format_bytes
from pipelines.config import PipelineConfig
from pipelines.context import FinishReason, ImageSpan, TextChunk, TextContext
from pipelines.engine.consumers import NextToken, PromptLogits, PromptLogProbs
from pipelines.engine.engine import Engine
from pipelines.errors import InputError, naming_prompt
from pipelines.pipeline_model import PipelineModel
from pipelines.sampling.defaults import SamplingDefaults
from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.sampling.params import ResolvedSamplingParams, SamplingParams
from pipelines.sampling.sampler import Sampler
from pipelines.text.detokenizer import StopChecker
from pipelines.text.prompts import EncodedPrompt, ImagePrompt, Prompt, PromptEncoder

STEP_LOGITS_BYTES = 256 * 2**20
"""The most that a step returns when the logits of all positions are wanted."""
MAX_LOGITS_BYTES = 4 * 2**30
"""The most that one call of `logits` returns."""

Slab = tuple[int, npt.NDArray[np.float32]]
"""The first position, and the logits [t, V] of it and the next."""


@dataclass(frozen=True)
class GenerationOutput:
    """A request that has ended.

    tokens: those generated, the one that ended the text included. finish_reason: "stop" (an end-of-text token, a stop
    token or a stop string), "length", "cancelled" or "error". logprobs, prompt_logprobs: where SamplingParams asked for
    them; one entry a token, of the prompt from its second token on. error: the exception that ended it, if one did.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    num_prompt_tokens: int
    logprobs: list[TokenLogProbs] | None = None
    prompt_logprobs: list[TokenLogProbs] | None = None
    error: Exception | None = None


class TextGenerationPipeline:
    """A loaded model with its cache and tokenizer; `load_pipeline` makes one.

    One thread at a time steps it; `submit` and `cancel` are safe from any. sampling_defaults: for the parameters that a
    request leaves open.
    """

    def __init__(
        self,
        config: PipelineConfig,
        model: PipelineModel,
        cache: KVCacheManager,
        prompts: PromptEncoder,
        sampling_defaults: SamplingDefaults | None = None,
    ) -> None:
        self.config, self.model, self.cache, self.prompts = config, model, cache, prompts
        self.tokenizer = prompts.tokenizer
        self.sampling_defaults = sampling_defaults or SamplingDefaults()
        self.engine = Engine(
            model,
            cache,
            max_length=prompts.max_length,
            max_batch_size=config.max_batch_size,
            max_step_tokens=config.max_step_tokens,
        )
        self._ids = map(str, itertools.count())

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[GenerationOutput]:
        """Completes the prompts together; params: for all of them, or one each.

        A request that fails has an output that says so (finish_reason "error"); the others are completed.

        Raises:
            InputError: An empty or overlong prompt, a token id outside the vocabulary; nothing was generated.
        """
        contexts = self.submit(_as_list(prompts), params)
        self._run(contexts)
        return [self._output(context) for context in contexts]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[TextChunk]:
        """Yields the completion of one prompt as it is generated. Closing the iterator cancels the request.

        Raises:
            InputError: As `generate`, at once.
        """
        context = self._context(prompt, params or SamplingParams())
        self._prepare([context])
        return self._stream(context)

    def logits(self, prompts: Prompt | Sequence[Prompt]) -> list[npt.NDArray[np.float32]]:
        """Computes the logits of every position of each prompt, [T, V] float32.

        Raises:
            InputError: As `generate`; or they would take more than MAX_LOGITS_BYTES: `logit_slabs` needs no such memory.
        """
        encoded = [self.prompts.encode(prompt, num_new=0) for prompt in _as_list(prompts)]
        vocab_size = self.prompts.vocab_size
        num_bytes = sum(len(prompt.tokens) for prompt in encoded) * vocab_size * 4
        if num_bytes > MAX_LOGITS_BYTES:
            raise InputError(
                f"the logits of all positions take {format_bytes(num_bytes)}, and at most "
                f"{format_bytes(MAX_LOGITS_BYTES)} are given at once: ask for fewer, or take them from logit_slabs"
            )
        logits = [np.full((len(prompt.tokens), vocab_size), np.nan, np.float32) for prompt in encoded]
        contexts = [self._logits_context(prompt, _Copy(target)) for prompt, target in zip(encoded, logits, strict=True)]
        self._prepare(contexts)
        self._submit(contexts)
        self._run(contexts)
        for context in contexts:
            _raise_error(context)
        return logits

    def logit_slabs(self, prompt: Prompt) -> Iterator[Slab]:
        """Yields the logits of a prompt's positions slab by slab: the first position, and [t, V] valid until the next.

        Raises:
            InputError: As `generate`, at once.
        """
        slabs: list[Slab] = []
        encoded = self.prompts.encode(prompt, num_new=0)
        context = self._logits_context(encoded, lambda start, slab: slabs.append((start, slab)))
        self._prepare([context])
        return self._logit_slabs(context, slabs)

    def submit(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[TextContext]:
        """Queues requests for the engine, all of them or none; whoever steps the engine reads their `chunks`.

        Raises:
            InputError: As `generate`.
        """
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        if len(params) != len(prompts):
            raise InputError(f"{len(prompts)} prompts have {len(params)} sampling parameters: give one each, or one")
        contexts = []
        for number, (prompt, p) in enumerate(zip(prompts, params, strict=True), 1):
            with naming_prompt(number, len(prompts)):
                contexts.append(self._context(prompt, p))
        self._prepare(contexts)
        self._submit(contexts)
        return contexts

    def cancel(self, context: TextContext) -> None:
        """Gives a request up; it ends before the next step, with what it has generated."""
        self.engine.cancel(context)

    def follow(self, context: TextContext) -> Iterator[TextChunk]:
        """Yields a submitted request's chunks as they are generated. Closing the iterator cancels the request."""
        engine = self.engine  # an iteration may be left after `close`
        try:
            while context.chunks or not context.is_finished:
                if not context.chunks:
                    engine.step()
                while context.chunks:
                    yield context.chunks.popleft()
        finally:
            engine.cancel(context)

    def finish(self, context: TextContext) -> GenerationOutput:
        """Steps until a submitted request has ended, and collects the chunks that nobody has read."""
        self._run([context])
        return self._output(context)

    def warm_up(self) -> None:
        """Compiles all graphs of the model, so that no request waits for one."""
        self.model.compile(self.model.graph_names)

    def close(self) -> None:
        """Frees the model and its cache; the pipeline can't be used afterwards."""
        self.__dict__.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self, contexts: Sequence[TextContext]) -> None:
        """Steps until all have ended; if that is interrupted, none is left behind."""
        try:
            while not all(context.is_finished for context in contexts):
                self.engine.step()
        finally:
            for context in contexts:
                self.engine.cancel(context)

    def _prepare(self, contexts: Sequence[TextContext]) -> None:
        """Checks that each could be served, and compiles what it needs, so that nothing compiles inside a step."""
        for number, context in enumerate(contexts, 1):
            with naming_prompt(number, len(contexts)):
                self.engine.check(context)
        needed = dict.fromkeys(name for context in contexts for name in self.model.required_graphs(context))
        self.model.compile(needed)

    def _submit(self, contexts: Sequence[TextContext]) -> None:
        for context in contexts:
            self.engine.submit(context)

    def _stream(self, context: TextContext) -> Iterator[TextChunk]:
        """Queues the request at the first step: an iteration that never begins would leave it there."""
        self.engine.submit(context)
        yield from self.follow(context)

    def _logit_slabs(self, context: TextContext, slabs: list[Slab]) -> Iterator[Slab]:
        engine = self.engine
        engine.submit(context)
        try:
            while not context.is_finished:
                engine.step()
                yield from slabs
                slabs.clear()
        finally:
            engine.cancel(context)
        _raise_error(context)

    def _context(self, prompt: Prompt, params: SamplingParams) -> TextContext:
        """A request for the next tokens."""
        encoded, resolved = self.prompts.encode(prompt), params.resolved(self.sampling_defaults)
        resolved.check_vocabulary(self.prompts.vocab_size)
        prompt_logprobs = None if resolved.prompt_logprobs is None else PromptLogProbs(resolved.prompt_logprobs)
        eos_token_ids = self.tokenizer.eos_token_ids
        consumer = NextToken(
            Sampler(resolved, encoded.tokens, eos_token_ids),
            self.tokenizer.detokenizer(skip_special_tokens=resolved.skip_special_tokens),
            StopChecker(resolved.stop),
            eos_token_ids,
            self.prompts.max_length,
            prompt_logprobs,
        )
        return TextContext(
            next(self._ids),
            encoded.tokens,
            resolved,
            consumer,
            _own_images(encoded),
            max_chunk_tokens=None if prompt_logprobs is None else self._max_slab_tokens,
            page_hashes=self._page_hashes(resolved),
        )

    def _logits_context(
        self, encoded: EncodedPrompt, on_slab: Callable[[int, npt.NDArray[np.float32]], None]
    ) -> TextContext:
        """A request for the logits of its prompt."""
        return TextContext(
            next(self._ids),
            encoded.tokens,
            SamplingParams(max_new_tokens=1).resolved(),
            PromptLogits(on_slab),
            _own_images(encoded),
            max_chunk_tokens=self._max_slab_tokens,
        )

    def _page_hashes(self, params: ResolvedSamplingParams) -> PageHashes | None:
        if not self.config.enable_prefix_caching:
            return None
        return PageHashes(self.cache.params.page_size, (params.cache_salt or "").encode())

    @property
    def _max_slab_tokens(self) -> int:
        """Tokens of a request in one step when the logits of all its positions are wanted."""
        return max(1, STEP_LOGITS_BYTES // (4 * self.prompts.vocab_size * self.config.max_batch_size))

    def _output(self, context: TextContext) -> GenerationOutput:
        chunks, consumer = context.chunks, context.consumer
        prompt_logprobs = consumer.prompt_logprobs if isinstance(consumer, NextToken) else None
        assert context.finish_reason is not None
        return GenerationOutput(
            text="".join(chunk.text for chunk in chunks),
            tokens=[token for chunk in chunks for token in chunk.tokens],
            finish_reason=context.finish_reason,
            num_prompt_tokens=context.num_prompt_tokens,
            logprobs=None if context.params.logprobs is None else [e for chunk in chunks for e in chunk.logprobs],
            prompt_logprobs=None if prompt_logprobs is None else prompt_logprobs.entries,
            error=context.error,
        )


@dataclass(frozen=True)
class _Copy:
    """Copies slabs of logits to where they belong in `target` [T, V]."""

    target: npt.NDArray[np.float32]

    def __call__(self, start: int, slab_TV: npt.NDArray[np.float32]) -> None:
        self.target[start : start + len(slab_TV)] = slab_TV


def _own_images(prompt: EncodedPrompt) -> list[ImageSpan]:
    """The images as the request's own, which drops their pixels; the caller's prompt stays as it is."""
    return [dataclasses.replace(image) for image in prompt.images]


def _raise_error(context: TextContext) -> None:
    """Raises the exception that ended a request, if one did."""
    if context.error is not None:
        raise context.error


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as several."""
    if isinstance(prompts, str | ImagePrompt | EncodedPrompt):
        return [prompts]
    several = (str, Sequence, np.ndarray, ImagePrompt, EncodedPrompt)
    if len(prompts) > 0 and not isinstance(prompts[0], several):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
