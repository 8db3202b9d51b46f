"""POST /v1/responses, and the routes of stored responses, which say that there are none."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pipelines.serve.answers import Framing, respond
from pipelines.serve.converted import start_converted
from pipelines.serve.errors import ApiError
from pipelines.serve.json_route import JsonRoute
from pipelines.serve.models import answered_model
from pipelines.serve.responses.answer import ResponseAnswer
from pipelines.serve.responses.conversion import NAMES, to_chat
from pipelines.serve.responses.events import STREAM_RESPONSE, EventLog
from pipelines.serve.responses.fields import ResponsesRequest
from pipelines.serve.responses.output import ResponseObject
from pipelines.serve.service import Service

ROUTE = "/v1/responses"


def responses_router(service: Service) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["responses"], route_class=JsonRoute)

    @router.post(ROUTE, response_model=ResponseObject, responses=STREAM_RESPONSE)
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        """Answers a conversation, of which nothing is stored; with `stream`, as server-sent events."""
        log = EventLog()
        framing = Framing(log.failure, end="")
        return await respond(service, request, body, start_response(service, body, log), framing)

    @router.get(f"{ROUTE}/{{response_id}}", include_in_schema=False)
    @router.delete(f"{ROUTE}/{{response_id}}", include_in_schema=False)
    @router.get(f"{ROUTE}/{{response_id}}/input_items", include_in_schema=False)
    @router.post(f"{ROUTE}/{{response_id}}/cancel", include_in_schema=False)
    async def refuse_stored(response_id: str) -> None:
        """Says that no response is stored."""
        message = f"There is no response {response_id[:100]!r}: this server is stateless and stores no responses."
        raise ApiError(404, message, param="response_id", code="response_not_stored")

    return router


async def start_response(service: Service, body: ResponsesRequest, log: EventLog) -> ResponseAnswer:
    """Checks a request and queues it; log: of its events, if it is streamed.

    Raises:
        ApiError: It can't be served.
    """
    model = answered_model(service, body.model)
    turn = await start_converted(service, to_chat(body), NAMES)
    return ResponseAnswer(turn, body, model, service.token_texts, log)
