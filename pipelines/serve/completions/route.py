"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pipelines.context import TextContext
from pipelines.errors import naming_prompt
from pipelines.sampling.params import SamplingParams
from pipelines.serve.answers import OPENAI, respond
from pipelines.serve.completions.answer import CompletionAnswer
from pipelines.serve.completions.fields import Completion, CompletionRequest
from pipelines.serve.decoding import decoding_of, new_contexts
from pipelines.serve.errors import bad_request
from pipelines.serve.fields import check_num_sequences
from pipelines.serve.json_route import JsonRoute
from pipelines.serve.models import answered_model
from pipelines.serve.service import Service
from pipelines.serve.sse import STREAM_RESPONSE
from pipelines.text.prompts import EncodedPrompt
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

    async def make() -> list[TextContext]:
        echoes.extend(await service.off_loop(lambda: _echoes(service.pipeline, body)))
        prompts = await service.off_loop(lambda: _encoded(service.pipeline, body))
        return await new_contexts(service, decoding, prompts, params)

    generation = await service.submit(make, num_sequences, len(body.prompt))
    return CompletionAnswer(body, model, generation, echoes, service.token_texts)


def completion_params(body: CompletionRequest) -> list[SamplingParams]:
    """The sampling parameters of each choice of a prompt; an answer without tokens computes one that is not told."""
    given = {
        "max_new_tokens": max(1, body.max_new_tokens),
        "logprobs": body.logprobs,
        "prompt_logprobs": body.logprobs if body.echo else None,
    }
    return [body.params(choice, **given) for choice in range(body.num_choices)]


def _encoded(pipeline: TextGenerationPipeline, body: CompletionRequest) -> list[EncodedPrompt]:
    encoded = []
    for number, prompt in enumerate(body.prompt, 1):
        with naming_prompt(number, len(body.prompt)):
            if isinstance(prompt, str) and body.add_special_tokens is False:
                prompt = pipeline.tokenizer.encode(prompt, add_special_tokens=False)
            encoded.append(pipeline.prompts.encode(prompt))
    return encoded


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
