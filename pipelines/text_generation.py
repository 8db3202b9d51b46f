"""The pipeline: prompts in, text or logits out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from kv_cache import KVCacheManager, format_bytes
from pipelines.config import PipelineConfig
from pipelines.context import FinishReason, TextChunk, TextContext
from pipelines.engine.consumers import NextToken
from pipelines.engine.engine import Engine
from pipelines.engine.step import TokenSampler
from pipelines.errors import InputError, naming_prompt
from pipelines.pipeline_model import PipelineModel
from pipelines.requests import RequestFactory
from pipelines.sampling.defaults import SamplingDefaults
from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.sampling.native import library
from pipelines.sampling.params import SamplingParams
from pipelines.text.prompts import EncodedPrompt, ImagePrompt, Prompt, PromptEncoder

MAX_LOGITS_BYTES = 4 * 2**30
"""Most bytes that one call of `logits` returns."""

Slab = tuple[int, npt.NDArray[np.float32]]
"""A position, and the logits [t, V] of it and the following ones."""


@dataclass(frozen=True)
class GenerationOutput:
    """The output of a request that has ended.

    tokens: the generated tokens, the one that ended the text included. finish_reason: "stop" (an end-of-text token, a
    stop token or a stop string), "length", "cancelled" or "error". logprobs, prompt_logprobs: if SamplingParams asked
    for them, one entry per token, of the prompt from its second token on. error: the exception that ended the request,
    if one did.
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

    One thread at a time steps it; `submit` and `cancel` are safe from any thread. sampling_defaults: for the parameters
    that a request leaves open. sampler: chooses tokens on the device; None: the host chooses them.

    Raises:
        InputError: The sampler can't be compiled.
    """

    def __init__(
        self,
        config: PipelineConfig,
        model: PipelineModel,
        cache: KVCacheManager,
        prompts: PromptEncoder,
        sampling_defaults: SamplingDefaults | None = None,
        sampler: TokenSampler | None = None,
    ) -> None:
        library()  # compiled now, so that no request waits for it
        self.config, self.model, self.cache, self.prompts = config, model, cache, prompts
        self.tokenizer = prompts.tokenizer
        self.requests = RequestFactory(
            prompts,
            sampling_defaults or SamplingDefaults(),
            cache.params.page_size if config.enable_prefix_caching else None,
            config.max_batch_size,
        )
        self.engine = Engine(
            model,
            cache,
            max_length=prompts.max_length,
            max_batch_size=config.max_batch_size,
            max_step_tokens=config.max_step_tokens,
            sampler=sampler,
        )

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[GenerationOutput]:
        """Completes the prompts together.

        A request that fails has an output with finish_reason "error"; the others are completed.

        Args:
            prompts: One prompt or several.
            params: The parameters of all of them, or those of each.

        Raises:
            InputError: A prompt is empty or too long, or a token id is outside the vocabulary; nothing was generated.
        """
        contexts = self.submit(_as_list(prompts), params)
        self._run(contexts)
        return [self._output(context) for context in contexts]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[TextChunk]:
        """Yields the completion of one prompt as it is generated. Closing the iterator cancels the request.

        Raises:
            InputError: As `generate`, at once.
        """
        context = self.requests.generation(prompt, params or SamplingParams())
        self._prepare([context])
        return self._stream(context)

    def logits(self, prompts: Prompt | Sequence[Prompt]) -> list[npt.NDArray[np.float32]]:
        """Computes the logits of every position of each prompt, [T, V] float32.

        Raises:
            InputError: As `generate`; or they take more than MAX_LOGITS_BYTES: `logit_slabs` needs no such memory.
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
        contexts = [self.requests.logits(prompt, _Copy(target)) for prompt, target in zip(encoded, logits, strict=True)]
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
        context = self.requests.logits(encoded, lambda start, slab: slabs.append((start, slab)))
        self._prepare([context])
        return self._logit_slabs(context, slabs)

    def submit(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[TextContext]:
        """Queues requests for the engine, all of them or none; their `chunks` fill as the engine is stepped.

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
                contexts.append(self.requests.generation(prompt, p))
        self._prepare(contexts)
        self._submit(contexts)
        return contexts

    def cancel(self, context: TextContext) -> None:
        """Cancels a request; it ends before the next step, with the output that it has."""
        self.engine.cancel(context)

    def iter_chunks(self, context: TextContext) -> Iterator[TextChunk]:
        """Yields a submitted request's chunks as they are generated. Closing the iterator cancels the request."""
        engine = self.engine  # the iterator may be closed after the pipeline
        try:
            while context.chunks or not context.is_finished:
                if not context.chunks:
                    engine.step()
                while context.chunks:
                    yield context.chunks.popleft()
        finally:
            engine.cancel(context)

    def finish(self, context: TextContext) -> GenerationOutput:
        """Steps until a submitted request has ended; returns its output, from the chunks that have not been read."""
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

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, contexts: Sequence[TextContext]) -> None:
        """Steps until all have ended; if that is interrupted, all are cancelled."""
        try:
            while not all(context.is_finished for context in contexts):
                self.engine.step()
        finally:
            for context in contexts:
                self.engine.cancel(context)

    def _prepare(self, contexts: Sequence[TextContext]) -> None:
        """Checks each request, and compiles the graphs that they need, so that nothing compiles inside a step."""
        for number, context in enumerate(contexts, 1):
            with naming_prompt(number, len(contexts)):
                self.engine.check(context)
        needed = dict.fromkeys(name for context in contexts for name in self.model.required_graphs(context))
        self.model.compile(needed)

    def _submit(self, contexts: Sequence[TextContext]) -> None:
        for context in contexts:
            self.engine.submit(context)

    def _stream(self, context: TextContext) -> Iterator[TextChunk]:
        """Queues the request at the first chunk: otherwise an iterator that is never used would leave it queued."""
        self.engine.submit(context)
        yield from self.iter_chunks(context)

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
    """Copies slabs of logits to their positions in `target` [T, V]."""

    target: npt.NDArray[np.float32]

    def __call__(self, start: int, slab_TV: npt.NDArray[np.float32]) -> None:
        self.target[start : start + len(slab_TV)] = slab_TV


def _raise_error(context: TextContext) -> None:
    """Raises the exception that ended a request, if there is one."""
    if context.error is not None:
        raise context.error


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Turns one prompt or several into a list."""
    if isinstance(prompts, str | ImagePrompt | EncodedPrompt):
        return [prompts]
    several = (str, Sequence, np.ndarray, ImagePrompt, EncodedPrompt)
    if len(prompts) > 0 and not isinstance(prompts[0], several):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
