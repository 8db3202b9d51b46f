"""JSON as it goes over the wire: bodies read within bounds, answers written with the keys that were set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

# Characters that JSON leaves as they are, and at which clients that split a stream into lines would cut.
_LINE_ENDS = (("\x85", "\\u0085"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))


def to_json(model: BaseModel) -> str:
    """A model in one line, with the fields that were given to it: absent ones are left out, None is null."""
    text = model.model_dump_json(exclude_unset=True)
    if text.isascii():
        return text
    for character, escaped in _LINE_ENDS:
        text = text.replace(character, escaped)
    return text


class JsonResponse(Response):
    """A model as the body of an answer."""

    media_type = "application/json"

    def __init__(self, model: BaseModel, status: int = 200, headers: Mapping[str, Any] | None = None) -> None:
        super().__init__(to_json(model), status, headers)
