"""Requests to a server in tests: answers whole or put together from a stream, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from serving import stream

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "Hello"}]
Writing = Callable[..., httpx.Client]
"""Makes the model write texts; tests/pipelines/serve/conftest.py has it."""
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}


def tool(name: str = "get_weather", parameters: Any = PARAMETERS, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters, **more}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


TOOLS = [tool(), tool("other", {"type": "object", "properties": {}, "additionalProperties": False})]


def ask(client: httpx.Client, **body: Any) -> Any:
    """The first choice of a chat completion."""
    response = client.post(CHAT, json={"messages": USER, **body})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def refused(client: httpx.Client, path: str = CHAT, status: int = 400, **body: Any) -> Any:
    base: dict[str, Any] = {"messages": USER} if path == CHAT else {"prompt": "A"}
    response = client.post(path, json={**base, **body})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@dataclass
class Streamed:
    """A choice that was streamed. deltas: all of them, as they came."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    deltas: list[dict[str, Any]] = field(default_factory=list)

    def add(self, choice: dict[str, Any]) -> None:
        """Takes the next choice of a chunk, whose form it checks."""
        assert self.finish_reason is None, "something came after the end"
        delta = choice["delta"]
        self.deltas.append(delta)
        self.content += delta.get("content", "")
        self.reasoning += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", []):
            self._add_call(call)
        self.finish_reason = choice["finish_reason"]

    def _add_call(self, call: dict[str, Any]) -> None:
        function = call["function"]
        assert isinstance(function["arguments"], str)
        if call["index"] == len(self.calls):
            assert call.keys() == {"index", "id", "type", "function"} and function.keys() == {"name", "arguments"}
            assert call["type"] == "function" and call["id"].startswith("call_") and function["name"]
            self.calls.append({"id": call["id"], "type": "function", "function": dict(function)})
            return
        assert call["index"] == len(self.calls) - 1
        assert call.keys() == {"index", "function"} and function.keys() == {"arguments"}
        self.calls[-1]["function"]["arguments"] += function["arguments"]

    @property
    def message(self) -> dict[str, Any]:
        """The message that the same answer would be as a whole."""
        message: dict[str, Any] = {"role": "assistant", "refusal": None}
        message["content"] = self.content if self.content or not self.calls else None
        if self.reasoning:
            message |= {"reasoning": self.reasoning, "reasoning_content": self.reasoning}
        if self.calls:
            message["tool_calls"] = self.calls
        return message


def ask_streamed(client: httpx.Client, **body: Any) -> Streamed:
    """The first choice, put together."""
    streamed = Streamed()
    for chunk in stream(client, CHAT, **{"messages": USER, **body}):
        for choice in chunk["choices"]:
            if choice["index"] == 0:
                streamed.add(choice)
    assert streamed.deltas[0] == {"role": "assistant", "content": ""}
    return streamed


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what differs from one answer to the next."""
    calls = [{**call, "id": ""} for call in message.get("tool_calls", [])]
    return {**message, "tool_calls": calls}
