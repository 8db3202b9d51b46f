"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastapi import APIRouter, Request, Response

from pipelines.context import TextContext
from pipelines.sampling.params import SamplingParams
from pipelines.serve.chat_answer import ChatAnswer
from pipelines.serve.chat_fields import ChatCompletion, ChatRequest
from pipelines.serve.decoding import Decoding, decoding_of
from pipelines.serve.errors import bad_request, naming_fields
from pipelines.serve.json_route import JsonRoute
from pipelines.serve.messages import template_kwargs, template_messages
from pipelines.serve.models import answered_model
from pipelines.serve.service import Service
from pipelines.serve.sse import STREAM_RESPONSE, EventStream, unless_client_leaves, with_error_event
from pipelines.serve.wire import JsonResponse
from pipelines.text.prompts import EncodedPrompt


def chat_router(service: Service) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["chat"], route_class=JsonRoute)

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM_RESPONSE)
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answers a conversation; with `stream`, as server-sent events of chunks."""
        with naming_fields(ChatRequest.model_fields):
            answer = await unless_client_leaves(request.receive, start_chat(service, body))
        if body.stream:
            events = with_error_event(answer.events())
            return EventStream(events, answer.generation.close, service.settings.send_timeout_s)
        return JsonResponse(await unless_client_leaves(request.receive, answer.complete()))

    return router


async def start_chat(service: Service, body: ChatRequest) -> ChatAnswer:
    """Checks a request and queues its choices.

    Raises:
        ApiError: It can't be served.
        InputError: Its prompt or its parameters can't be.
    """
    model = answered_model(service, body.model)
    decoding = decoding_of(service, body)
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
    params = chat_params(body)
    generation = await service.submit(lambda: _contexts(service, body, decoding, params), body.num_choices)
    return ChatAnswer(body, model, decoding, generation, service.token_texts)


def chat_params(body: ChatRequest) -> list[SamplingParams]:
    """The sampling parameters of each choice."""
    logprobs = body.top_logprobs or 0 if body.logprobs else None
    given = {"max_new_tokens": body.max_new_tokens, "logprobs": logprobs}
    return [body.params(choice, **given) for choice in range(body.num_choices)]


async def _contexts(
    service: Service, body: ChatRequest, decoding: Decoding, params: Sequence[SamplingParams]
) -> list[TextContext]:
    pipeline = service.pipeline
    encode = await chat_encoder(service, body, decoding)

    def make() -> list[TextContext]:
        prompt = encode()
        return [decoding.new_context(pipeline, prompt, each) for each in params]

    return await service.off_loop(make)


async def chat_encoder(service: Service, body: ChatRequest, decoding: Decoding) -> Callable[[], EncodedPrompt]:
    """Reads a conversation's images; returns the call, for the worker thread, that renders and encodes it.

    Raises:
        ApiError: The messages can't be used.
        InputError: An image can't be.
    """
    prompts = service.pipeline.prompts
    messages, references = template_messages(body.messages, prompts.tokenizer.chat_template)
    if references and prompts.load_image_processor is None:
        raise bad_request("The model takes text alone: leave the images out.", "messages")
    options = {name: getattr(body, name) for name in ("documents", "add_generation_prompt", "continue_final_message")}
    kwargs = {name: value for name, value in options.items() if value is not None}
    kwargs |= template_kwargs(body.chat_template_kwargs) | dict(decoding.template_kwargs)
    images = await service.images.load(references)
    return lambda: prompts.encode_chat(messages, images, **kwargs)
