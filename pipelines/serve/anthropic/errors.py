"""Errors in the shape of Anthropic's API: {"type": "error", "error": {"type", "message"}, "request_id"}."""

from __future__ import annotations

from typing import Any, Literal

from starlette.types import Scope

from pipelines.serve.errors import ApiError
from pipelines.serve.fields import ApiModel

ROUTE = "/v1/messages"
"""The route whose errors, and those of the routes below it, have this shape."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicErrorDetail(ApiModel):
    """Description of an error. type: by its status."""

    type: str
    message: str


class AnthropicErrorResponse(ApiModel):
    """The body of every answer that is not a success, and the event that ends a stream that fails."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str | None


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": AnthropicErrorResponse, "description": "The request can't be served as it is."},
    "5XX": {"model": AnthropicErrorResponse, "description": "The server can't serve it, or not now."},
}
"""Entries of /openapi.json for the routes with these errors."""


def has_anthropic_errors(scope: Scope) -> bool:
    """Whether a request is one for Anthropic's API, by its path."""
    path: str = scope["path"]
    return path == ROUTE or path.startswith(f"{ROUTE}/")


def anthropic_error(error: ApiError, request_id: str | None) -> AnthropicErrorResponse:
    """An error as clients of Anthropic's API get it."""
    fallback = "api_error" if error.status_code >= 500 else "invalid_request_error"
    kind, message = _TYPES.get(error.status_code, fallback), error.message
    if error.code == "context_length_exceeded":
        message = f"prompt is too long: {message}"  # the words by which agents know that they have to shorten it
    return AnthropicErrorResponse(
        type="error", error=AnthropicErrorDetail(type=kind, message=message), request_id=request_id
    )
