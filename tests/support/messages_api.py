"""Requests to Anthropic's Messages API in tests, and what the fake model answers."""

from __future__ import annotations

from typing import Any

import httpx
from fake_model import greedy_text, text_of
from serving import MODEL, ChatTokenizer

PATH = "/v1/messages"
USER = [{"role": "user", "content": "HELL1"}]
BODY: dict[str, Any] = {"model": MODEL, "messages": USER, "max_tokens": 12, "ignore_eos": True}
PROMPT = "UHELL1;=>"


def greedy(prompt: str = PROMPT, num_new: int = 12) -> str:
    return text_of(greedy_text(ChatTokenizer().encode(prompt), num_new, True))


def ask(client: httpx.Client, **body: Any) -> Any:
    response = client.post(PATH, json={**BODY, **body})
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: httpx.Client, status: int = 400, path: str = PATH, **body: Any) -> Any:
    response = client.post(path, json={**BODY, **body})
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    return body["error"]


def text(message: Any) -> str:
    return "".join(block["text"] for block in message["content"])
