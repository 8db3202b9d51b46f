"""Requests to the Responses API in tests, and what the fake model answers."""

from __future__ import annotations

from typing import Any

import httpx
from fake_model import greedy_text, text_of
from serving import MODEL, ChatTokenizer

PATH = "/v1/responses"
BODY: dict[str, Any] = {"model": MODEL, "input": "HELL1", "max_output_tokens": 12, "ignore_eos": True}
PROMPT = "UHELL1;=>"


def greedy(prompt: str = PROMPT, num_new: int = 12) -> str:
    return text_of(greedy_text(ChatTokenizer().encode(prompt), num_new, True))


def ask(client: httpx.Client, **body: Any) -> Any:
    response = client.post(PATH, json={**BODY, **body})
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: httpx.Client, status: int = 400, **body: Any) -> Any:
    response = client.post(PATH, json={**BODY, **body})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def text(response: Any) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])
