"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from pipelines.context import TextContext
from pipelines.errors import naming_prompt
from pipelines.sampling.params import SamplingParams
from pipelines.serve.answers import OPENAI, respond
from pipelines.serve.completions.answer import CompletionAnswer
from pipelines.serve.completions.fields import Completion, CompletionRequest
from pipelines.serve.decoding import Decoding, decoding_of
from pipelines.serve.errors import bad_request
from pipelines.serve.fields import check_num_sequences
from pipelines.serve.json_route import JsonRoute
from pipelines.serve.models import answered_model
from pipelines.serve.service import Service
from pipelines.serve.sse import STREAM_RESPONSE
from pipelines.text_generation import TextGenerationPipeline


def completions_router(service: Service) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["completions"], route_class=JsonRoute)

    @router.post("/v1/completions", response_model=Completion, responses=STREAM_RESPONSE)
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continues texts; with `stream`, as server-sent events of chunks."""
        return await respond(service, request, body, start_completion(service, body), OPENAI)

    return router


async def start_completion(service: Service, body: CompletionRequest) -> CompletionAnswer:
    """Checks a request and queues its choices.

    Raises:
        ApiError: It can't be served.
        InputError: A prompt or its parameters can't be.
    """
    model = answered_model(service, body.model)
    decoding = decoding_of(service, body)
    if body.suffix:
        raise bad_request("suffix is not supported: leave it out.", "suffix")
    num_sequences = check_num_sequences(len(body.prompt), body.num_choices)
    params = completion_params(body)
    echoes: list[str] = []

    def make() -> list[TextContext]:
        echoes.extend(_echoes(service.pipeline, body))
        return _contexts(service.pipeline, body, decoding, params)

    generation = await service.submit(lambda: service.off_loop(make), num_sequences)
    return CompletionAnswer(body, model, generation, echoes, service.token_texts)


def completion_params(body: CompletionRequest) -> list[SamplingParams]:
    """The sampling parameters of each choice of a prompt; an answer without tokens computes one that is not told."""
    given = {
        "max_new_tokens": max(1, body.max_new_tokens),
        "logprobs": body.logprobs,
        "prompt_logprobs": body.logprobs if body.echo else None,
    }
    return [body.params(choice, **given) for choice in range(body.num_choices)]


def _contexts(
    pipeline: TextGenerationPipeline, body: CompletionRequest, decoding: Decoding, params: Sequence[SamplingParams]
) -> list[TextContext]:
    """The sequences: for each prompt its choices."""
    contexts = []
    for number, prompt in enumerate(body.prompt, 1):
        with naming_prompt(number, len(body.prompt)):
            if isinstance(prompt, str) and body.add_special_tokens is False:
                prompt = pipeline.tokenizer.encode(prompt, add_special_tokens=False)
            encoded = pipeline.prompts.encode(prompt)
            contexts += [decoding.new_context(pipeline, encoded, each) for each in params]
    return contexts


def _echoes(pipeline: TextGenerationPipeline, body: CompletionRequest) -> list[str]:
    """The prompts' texts, where they are echoed."""
    if not body.echo:
        return [""] * len(body.prompt)
    skip = body.skip_special_tokens is not False
    vocab_size = pipeline.prompts.vocab_size
    texts = []
    for prompt in body.prompt:
        is_known = isinstance(prompt, str) or all(0 <= token < vocab_size for token in prompt)
        tokens = prompt if is_known else ()  # `encode` refuses it
        texts.append(tokens if isinstance(tokens, str) else pipeline.tokenizer.decode(tokens, skip))
    return texts
