"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pipelines.serve.answers import Framing, respond
from pipelines.serve.anthropic.answer import MessageAnswer
from pipelines.serve.anthropic.conversion import NAMES, to_chat
from pipelines.serve.anthropic.errors import ERROR_RESPONSES, ROUTE, anthropic_error
from pipelines.serve.anthropic.fields import CountTokensRequest, MessagesRequest
from pipelines.serve.anthropic.message import STREAM_RESPONSE, MessageObject, TokenCount
from pipelines.serve.converted import num_prompt_tokens, start_converted
from pipelines.serve.json_route import JsonRoute
from pipelines.serve.models import answered_model
from pipelines.serve.service import Service
from pipelines.serve.sse import event


def messages_router(service: Service) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["messages"], route_class=JsonRoute, responses=ERROR_RESPONSES)

    @router.post(ROUTE, response_model=MessageObject, responses=STREAM_RESPONSE)
    async def create_message(body: MessagesRequest, request: Request) -> Response:
        """Answers a conversation in the shape of Anthropic's API; with `stream`, as server-sent events."""
        request_id = request.scope["state"]["request_id"]
        framing = Framing(lambda error: event(anthropic_error(error, request_id), "error"), end="")
        return await respond(service, request, body, start_message(service, body), framing)

    @router.post(f"{ROUTE}/count_tokens")
    async def count_tokens(body: CountTokensRequest) -> TokenCount:
        """Counts the tokens of the prompt that a conversation becomes."""
        answered_model(service, body.model)
        return TokenCount(input_tokens=await num_prompt_tokens(service, to_chat(body), NAMES))

    return router


async def start_message(service: Service, body: MessagesRequest) -> MessageAnswer:
    """Checks a request and queues it.

    Raises:
        ApiError: It can't be served.
    """
    model = answered_model(service, body.model)
    return MessageAnswer(await start_converted(service, to_chat(body), NAMES), model)
