"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter

from pipelines.serve.errors import ApiError
from pipelines.serve.fields import ApiModel
from pipelines.serve.service import Service


class Model(ApiModel):
    """A name under which the model is served. max_model_len: tokens of prompt and output; absent while it loads."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None = None


class ModelList(ApiModel):
    """The names under which the model is served, the one in answers first."""

    object: Literal["list"]
    data: list[Model]


def answered_model(service: Service, name: str | None) -> str:
    """The name of the model in an answer: as the request has it, or the first.

    Raises:
        ApiError: There is no such model.
    """
    names = service.settings.served_model_names
    if name and name not in names:
        message = f"The model {name[:200]!r} does not exist: GET /v1/models lists those that do."
        raise ApiError(404, message, param="model", code="model_not_found")
    return name or names[0]


def models_router(service: Service) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["models"])
    created = int(time.time())

    def model(name: str) -> Model:
        given = {"id": name, "object": "model", "created": created, "owned_by": "graph-pipelines"}
        if service.is_loaded.is_set() and service.error is None:
            given["max_model_len"] = service.pipeline.prompts.max_length
        return Model.model_validate(given)

    @router.get("/v1/models", response_model_exclude_unset=True)
    async def list_models() -> ModelList:
        """Lists the model, once for each of its names."""
        return ModelList(object="list", data=[model(name) for name in service.settings.served_model_names])

    @router.get("/v1/models/{name:path}", response_model_exclude_unset=True)
    async def get_model(name: str) -> Model:
        """Describes the model under one of its names, which may have slashes."""
        return model(answered_model(service, name))

    return router
