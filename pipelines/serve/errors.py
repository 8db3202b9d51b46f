"""Errors of the API: one shape, {"error": {"message", "type", "param", "code"}}, and the right status."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import HTTPException
from pydantic import BaseModel

from pipelines.errors import InputError

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
"""Type of an error by its status; other statuses are invalid_request_error below 500, server_error from there on."""

_UNION_MEMBER = re.compile(r"str|int|bool|float|[A-Z]\w*|.*\[.*")
"""Parts of the paths in pydantic's errors that name a type, not a field."""
_TOO_LONG = re.compile(r"the prompt has (.*), and the limit is (\d+) with")


class ErrorDetail(BaseModel):
    """Description of an error. param: the field that it is about. code: a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success, and the event that ends a stream that fails."""

    error: ErrorDetail


class ApiError(HTTPException):
    """A request that can't be served."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.message, self.param, self.code = message, param, code

    @property
    def body(self) -> ErrorResponse:
        """The error as clients get it."""
        fallback = "server_error" if self.status_code >= 500 else "invalid_request_error"
        kind = ERROR_TYPES.get(self.status_code, fallback)
        return ErrorResponse(error=ErrorDetail(message=self.message, type=kind, param=self.param, code=self.code))


class ClientGoneError(Exception):
    """The client closed the connection: there is nobody to answer."""


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """An error of the client."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, retry_after_s: int = 5) -> ApiError:
    """The answer of a server that is loading or draining."""
    return ApiError(503, message, code="service_unavailable", headers={"Retry-After": str(retry_after_s)})


def of_input_error(error: InputError, fields: Collection[str] = ()) -> ApiError:
    """An error of the pipeline's checks as one of the API; fields: of the request, which it may name."""
    message = str(error)
    if match := _TOO_LONG.search(message):
        size, limit = match[1], match[2]
        return bad_request(
            f"This model's maximum context length is {limit} tokens. However, your prompt has {size}, and at least one "
            "new token needs room. Please reduce the length of the prompt.",
            code="context_length_exceeded",
        )
    message = message.replace("max_new_tokens", "max_tokens").replace(" (--max-new-tokens)", "")
    first_word = re.match(r"\w+", message)
    param = first_word[0] if first_word and first_word[0] in fields else None
    return bad_request(message, param)


@contextmanager
def naming_fields(fields: Collection[str]) -> Iterator[None]:
    """Turns the InputErrors of the block into errors of the API, which may name a field of the request."""
    try:
        yield
    except InputError as error:
        raise of_input_error(error, fields) from error


def of_engine_error(error: Exception | None) -> ApiError:
    """The end of a request that the engine could not compute."""
    if isinstance(error, InputError):
        return of_input_error(error)
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ApiError(500, f"The request failed in the engine: {reason}", code="engine_error")


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The deepest of pydantic's errors, the first of several, as one of the API."""
    deepest = max(errors, key=lambda error: len(error["loc"]))
    path = [part for part in map(str, deepest["loc"]) if part != "body" and not _UNION_MEMBER.fullmatch(part)]
    if not path:
        return bad_request("The body must be a JSON object, with Content-Type: application/json.")
    message = str(deepest["msg"]).removeprefix("Value error, ")
    return bad_request(f"{'.'.join(path)}: {message}", ".".join(path))
