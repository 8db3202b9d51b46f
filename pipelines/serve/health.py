"""GET /health, /ready and /version."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter

from pipelines.serve.errors import unavailable
from pipelines.serve.fields import ApiModel
from pipelines.serve.service import Service


class Status(ApiModel):
    """The state of the server: loading, ready or draining."""

    status: str


class Version(ApiModel):
    """The version of graph-pipelines."""

    version: str


def health_router(service: Service) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["health"])

    @router.get("/health")
    async def health() -> Status:
        """Says whether the process works; 503 once its engine has failed."""
        if service.state == "failed":
            raise unavailable("The engine has failed: restart the server.")
        return Status(status=service.state)

    @router.get("/ready")
    async def ready() -> Status:
        """Says whether requests are served; 503 while the model is being loaded and while the server shuts down."""
        service.check_ready()
        return Status(status=service.state)

    @router.get("/version")
    async def get_version() -> Version:
        """The version of the server."""
        return Version(version=version("graph-pipelines"))

    return router
