"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pipelines.serve.answers import OPENAI, respond
from pipelines.serve.chat.answer import ChatAnswer
from pipelines.serve.chat.fields import ChatCompletion, ChatRequest
from pipelines.serve.chat.turn import start_turn
from pipelines.serve.json_route import JsonRoute
from pipelines.serve.models import answered_model
from pipelines.serve.service import Service
from pipelines.serve.sse import STREAM_RESPONSE


def chat_router(service: Service) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["chat"], route_class=JsonRoute)

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM_RESPONSE)
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answers a conversation; with `stream`, as server-sent events of chunks."""
        return await respond(service, request, body, start_chat(service, body), OPENAI)

    return router


async def start_chat(service: Service, body: ChatRequest) -> ChatAnswer:
    """Checks a request and queues its choices.

    Raises:
        ApiError: It can't be served.
        InputError: Its prompt or its parameters can't be.
    """
    model = answered_model(service, body.model)
    return ChatAnswer(await start_turn(service, body), model, service.token_texts)
