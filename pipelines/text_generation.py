"""The pipeline as its users see it: prompts in, text out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from kv_cache import KVCacheManager
from pipelines.config import PipelineConfig
from pipelines.context import TextContext
from pipelines.engine.engine import Engine, Request, TextChunk
from pipelines.errors import InputError
from pipelines.pipeline_model import PipelineModel
from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.sampling.params import SamplingParams
from pipelines.sampling.sampler import Sampler
from pipelines.text.detokenizer import StopChecker
from pipelines.text.prompts import EncodedPrompt, ImagePrompt, Prompt, PromptEncoder

LOGITS_BYTES = 256 * 2**20
"""How much a step may return when the logits of all positions are wanted."""


@dataclass(frozen=True)
class GenerationOutput:
    """A finished request.

    tokens: those generated, the one that ended the text included. finish_reason: "stop" (an end-of-text token, a stop
    token or a stop string) or "length". logprobs: one entry a token, where SamplingParams asked for them.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    num_prompt_tokens: int
    logprobs: list[TokenLogProbs] | None = None


class TextGenerationPipeline:
    """A loaded model with its cache and tokenizer; `load_pipeline` makes one. Not for use from several threads."""

    def __init__(
        self,
        config: PipelineConfig,
        model: PipelineModel,
        cache: KVCacheManager,
        prompts: PromptEncoder,
    ) -> None:
        self.config, self.model, self.cache, self.prompts = config, model, cache, prompts
        self.tokenizer = prompts.tokenizer
        self.engine = Engine(
            model,
            cache,
            eos_token_ids=prompts.tokenizer.eos_token_ids,
            max_length=prompts.max_length,
            max_batch_size=config.max_batch_size,
            max_step_tokens=config.max_step_tokens,
        )
        self._ids = map(str, itertools.count())

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[GenerationOutput]:
        """Completes the prompts together; params: for all of them, or one each.

        Raises:
            InputError: An empty or overlong prompt, a token id outside the vocabulary; nothing was generated.
        """
        requests = self.submit(_as_list(prompts), params)
        self._run(requests)
        return [_output(request) for request in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[TextChunk]:
        """The completion of one prompt, piece by piece; leaving the iteration gives the request up.

        Raises:
            InputError: As `generate`, at once.
        """
        request = self._request(prompt, params or SamplingParams())
        self.engine.check(request)
        return self._stream(request)

    def logits(self, prompts: Prompt | Sequence[Prompt]) -> list[npt.NDArray[np.float32]]:
        """The logits of every position of each prompt, [T, V] float32.

        Raises:
            InputError: As `generate`.
        """
        requests = [self._logits_request(prompt) for prompt in _as_list(prompts)]
        self._add(requests)
        self._run(requests)
        return [request.logits for request in requests if request.logits is not None]

    def submit(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Request]:
        """Queues requests for the engine, all of them or none; whoever steps the engine reads their `chunks`."""
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        if len(params) != len(prompts):
            raise InputError(f"{len(prompts)} prompts have {len(params)} sampling parameters: give one each, or one")
        requests = [self._request(prompt, p) for prompt, p in zip(prompts, params, strict=True)]
        self._add(requests)
        return requests

    def follow(self, request: Request) -> Iterator[TextChunk]:
        """What a submitted request gives, as it comes; leaving the iteration gives the request up."""
        engine = self.engine  # an iteration may be left after `close`
        try:
            while request.chunks or not request.is_done:
                if not request.chunks:
                    engine.step()
                while request.chunks:
                    yield request.chunks.popleft()
        finally:
            engine.cancel(request)

    def finish(self, request: Request) -> GenerationOutput:
        """All that a submitted request gives, once it is done."""
        self._run([request])
        return _output(request)

    def close(self) -> None:
        """Frees the model and its cache; the pipeline can't be used afterwards."""
        self.__dict__.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self, requests: Sequence[Request]) -> None:
        """Steps until all are done; if one step fails, none is left behind."""
        try:
            while not all(request.is_done for request in requests):
                self.engine.step()
        finally:
            for request in requests:
                self.engine.cancel(request)

    def _add(self, requests: list[Request]) -> None:
        for request in requests:
            self.engine.check(request)
        for request in requests:
            self.engine.add(request)

    def _stream(self, request: Request) -> Iterator[TextChunk]:
        """Queues the request at the first step: an iteration that never begins would leave it there."""
        self.engine.add(request)
        yield from self.follow(request)

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        encoded = self.prompts.encode(prompt)
        return self._new_request(TextContext(next(self._ids), encoded.tokens, params, images=encoded.images))

    def _logits_request(self, prompt: Prompt) -> Request:
        encoded, request_id = self.prompts.encode(prompt, num_new=0), next(self._ids)
        vocab_size = self.prompts.vocab_size
        max_chunk = max(1, LOGITS_BYTES // (4 * vocab_size * self.config.max_batch_size))
        # It must compute all its tokens itself: a salt of its own keeps it apart from the prefixes of others.
        context = TextContext(
            request_id,
            encoded.tokens,
            SamplingParams(max_new_tokens=1),
            salt=request_id.encode(),
            max_chunk=max_chunk,
            images=encoded.images,
        )
        return self._new_request(context, logits=np.full((len(encoded.tokens), vocab_size), np.nan, np.float32))

    def _new_request(self, context: TextContext, logits: npt.NDArray[np.float32] | None = None) -> Request:
        return Request(
            context=context,
            sampler=Sampler(context.params, context.tokens, self.engine.eos_token_ids),
            detokenizer=self.tokenizer.detokenizer(),
            stops=StopChecker(context.params.stop),
            logits=logits,
        )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as several."""
    if isinstance(prompts, str | ImagePrompt | EncodedPrompt):
        return [prompts]
    several = (str, Sequence, np.ndarray, ImagePrompt, EncodedPrompt)
    if len(prompts) > 0 and not isinstance(prompts[0], several):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _output(request: Request) -> GenerationOutput:
    chunks = request.chunks
    wants_logprobs = request.context.params.logprobs is not None
    return GenerationOutput(
        text="".join(chunk.text for chunk in chunks),
        tokens=[token for chunk in chunks for token in chunk.tokens],
        finish_reason=chunks[-1].finish_reason or "length",
        num_prompt_tokens=request.context.prompt_length,
        logprobs=[entry for chunk in chunks for entry in chunk.logprobs] if wants_logprobs else None,
    )
