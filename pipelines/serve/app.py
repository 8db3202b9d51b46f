"""The application: its routes, and what happens to every request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from pipelines.serve.access_log import GenerationNotes
from pipelines.serve.anthropic.route import messages_router
from pipelines.serve.chat.route import chat_router
from pipelines.serve.completions.route import completions_router
from pipelines.serve.error_answers import install_error_handlers
from pipelines.serve.errors import ErrorResponse
from pipelines.serve.health import health_router
from pipelines.serve.metrics import Metrics, metrics_router
from pipelines.serve.middleware import ApiKey, BodyLimit, RequestIds
from pipelines.serve.models import models_router
from pipelines.serve.page import page_router
from pipelines.serve.responses.route import responses_router
from pipelines.serve.service import Service
from pipelines.serve.settings import ServeSettings
from pipelines.serve.tokens import tokens_router

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request can't be served as it is."},
    "5XX": {"model": ErrorResponse, "description": "The server can't serve it, or not now."},
}
ROUTERS = (
    health_router,
    models_router,
    chat_router,
    completions_router,
    tokens_router,
    page_router,
    responses_router,
    messages_router,
)


def create_app(service: Service, settings: ServeSettings) -> FastAPI:
    """Makes the application of a service, which it starts and stops with itself."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="graph-pipelines",
        version=version("graph-pipelines"),
        lifespan=lifespan,
        docs_url=None,  # these pages load their scripts from other servers
        redoc_url=None,
        responses=ERROR_RESPONSES,
        strict_content_type=False,
        redirect_slashes=False,
    )
    app.state.large_bodies = asyncio.Lock()
    for make_router in ROUTERS:
        app.include_router(make_router(service))
    metrics = Metrics(service)
    app.include_router(metrics_router(metrics))
    service.observers += [metrics, GenerationNotes()]
    install_error_handlers(app)
    _add_middleware(app, settings)
    return app


def _add_middleware(app: FastAPI, settings: ServeSettings) -> None:
    """Adds what every request passes, the innermost first."""
    app.add_middleware(BodyLimit, settings.max_request_bytes, settings.body_timeout_s)
    if settings.api_key is not None:
        app.add_middleware(ApiKey, settings.api_key)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id"],
        )
    app.add_middleware(RequestIds)
