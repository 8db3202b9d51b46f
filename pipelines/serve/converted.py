"""Requests of other chat APIs as chat requests, with errors that name the fields of those APIs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from pipelines.serve.chat.fields import ChatRequest
from pipelines.serve.chat.turn import ChatTurn, chat_encoder, start_turn
from pipelines.serve.decoding import decoding_of
from pipelines.serve.errors import ApiError, naming_fields, validation_error
from pipelines.serve.fields import GenerationFields
from pipelines.serve.service import Service


def chat_request(body: GenerationFields, given: Mapping[str, Any], names: Mapping[str, str]) -> ChatRequest:
    """A request as one for a chat completion.

    Args:
        body: The request, whose sampling fields are taken as they are; unknown ones too, since the chat refuses some.
        given: The other fields of the chat request; None is left out.
        names: Names of fields of the chat request in the other API, by which errors call them.

    Raises:
        ApiError: A field does not fit.
    """
    unknown = {name: value for name, value in (body.model_extra or {}).items() if name not in ChatRequest.model_fields}
    sampling = {name: getattr(body, name) for name in GenerationFields.model_fields}
    fields = {**unknown, **sampling, **given}
    with _renaming(names):
        try:
            return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            raise validation_error(error.errors()) from None


async def start_converted(service: Service, body: ChatRequest, names: Mapping[str, str]) -> ChatTurn:
    """Checks a converted request and queues it; names: as for `chat_request`.

    Raises:
        ApiError: It can't be served.
    """
    with _renaming(names):
        return await start_turn(service, body)


async def num_prompt_tokens(service: Service, body: ChatRequest, names: Mapping[str, str]) -> int:
    """Number of tokens of a converted request's prompt; names: as for `chat_request`.

    Raises:
        ApiError: It can't be served.
    """
    with _renaming(names):
        encode = await chat_encoder(service, body, decoding_of(service, body))
        return len((await service.off_loop(encode)).tokens)


@contextmanager
def _renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Turns the errors of the block, which name fields of a chat request, into errors that name the other API's."""
    try:
        with naming_fields(ChatRequest.model_fields):
            yield
    except ApiError as error:
        field = (error.param or "").partition(".")[0]
        if field not in names:
            raise
        message = re.sub(rf"\b{field}\b[\w.]*", names[field], error.message, count=1)
        raise ApiError(
            error.status_code, message, param=names[field], code=error.code, headers=error.headers
        ) from error
