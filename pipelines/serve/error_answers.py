"""Answers to requests that fail: each error in the shape of the API that was asked, by the path."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response
from starlette.types import Scope

from pipelines.errors import InputError
from pipelines.serve.anthropic.errors import anthropic_error, has_anthropic_errors
from pipelines.serve.errors import ApiError, ClientGoneError, of_input_error, validation_error
from pipelines.serve.wire import JsonResponse


def error_answer(error: ApiError, scope: Scope) -> Response:
    """An error as the answer to a request."""
    body: BaseModel = error.body
    if has_anthropic_errors(scope):
        body = anthropic_error(error, scope.get("state", {}).get("request_id"))
    return JsonResponse(body, error.status_code, error.headers)


def install_error_handlers(app: FastAPI) -> None:
    """Answers every error of the application in the shape of the API."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(InputError, _on_input_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(StarletteHTTPException, _on_http_exception)
    app.add_exception_handler(ClientGoneError, _on_client_gone)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_answer(error, request.scope)


async def _on_input_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, InputError)
    return error_answer(of_input_error(error), request.scope)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_answer(validation_error(error.errors()), request.scope)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    path = request.url.path[:200]
    messages = {
        404: f"There is no route {path}: the routes are in /openapi.json.",
        405: f"{request.method} is not allowed on {path}.",
    }
    message = messages.get(error.status_code, str(error.detail))
    return error_answer(ApiError(error.status_code, message, headers=error.headers), request.scope)


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)
