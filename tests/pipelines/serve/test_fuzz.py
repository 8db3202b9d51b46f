"""Requests in which something is wrong: every answer is a success or an error of the client, in the API's shape."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from chat_models import writing_pipeline
from fake_model import assert_idle
from serving import MODEL, LiveServer, serving
from turns import named_events

pytestmark = pytest.mark.slow  # together they take seconds

SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]}
SAMPLING = {"temperature": 1, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "seed": 1, "stop": ["!"], "logit_bias": {"5": 1}}
RESPONSES: dict[str, Any] = {
    "model": MODEL,
    "instructions": "A",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "A"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "B"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "C", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": '{"a": "b"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "D"},
    ],
    "max_output_tokens": 2,
    "tools": [{"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": False}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "parallel_tool_calls": False,
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "metadata": {"a": "b"},
    "chat_template_kwargs": {"enable_thinking": False},
    "stream": False,
    "stream_options": {"include_obfuscation": False},
    "truncation": "disabled",
    **SAMPLING,
}
MESSAGES: dict[str, Any] = {
    "model": MODEL,
    "system": [{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "A"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "B", "signature": "s"},
                {"type": "text", "text": "C"},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": "b"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "D"}]},
                {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "E"}},
            ],
        },
    ],
    "max_tokens": 2,
    "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"},
    "stop_sequences": ["?"],
    "metadata": {"user_id": "u"},
    "stream": False,
    **SAMPLING,
}
BODIES = {"/v1/responses": RESPONSES, "/v1/messages": MESSAGES, "/v1/messages/count_tokens": MESSAGES}
JUNK: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    10**30,
    0.5,
    1e308,
    "",
    "x",
    "\0\u2028\U0001f600",
    "x" * 300,
    [],
    [None],
    [[]],
    ["x"],
    [{}],
    {},
    {"type": None},
    {"type": "text"},
    {"type": "function", "name": "f"},
    {"x": {"x": []}},
]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with serving(writing_pipeline("qwen3")) as server:
        yield server
    assert_idle(server.pipe)


def paths(value: Any) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in a body."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield (key,)
        yield from ((key, *path) for path in paths(each))


def mutated(body: Any, rng: random.Random) -> Any:
    """A body in which one or two values are junk, or missing."""
    body = copy.deepcopy(body)
    for _ in range(rng.randrange(1, 3)):
        *parents, key = rng.choice(list(paths(body)))
        place = body
        for parent in parents:
            place = place[parent]
        if rng.random() < 0.1:
            del place[key]
        else:
            place[key] = copy.deepcopy(rng.choice(JUNK))
    return body


def check(path: str, response: httpx.Response) -> int:
    """Checks that an answer is a success, or an error of the client in the shape of the API; returns its status."""
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        assert named_events(response.iter_lines())[-1]["type"] not in ("error", "response.failed")
        return 200
    answer = response.json()
    if response.status_code == 200:
        assert "error" not in answer or answer["error"] is None
    elif path.startswith("/v1/messages"):
        assert set(answer) == {"type", "error", "request_id"} and set(answer["error"]) == {"type", "message"}
    else:
        assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
    return response.status_code


@pytest.mark.parametrize("path", BODIES)
def test_the_bodies_are_served_as_they_are(client: httpx.Client, path: str) -> None:
    for body in (BODIES[path], {**BODIES[path], "stream": True}):
        response = client.post(path, json=body)
        assert check(path, response) == 200, response.text


@pytest.mark.parametrize("path", BODIES)
def test_every_field_may_be_wrong(client: httpx.Client, path: str) -> None:
    body = BODIES[path]
    statuses = {check(path, client.post(path, json={**body, name: junk})) for name in body for junk in JUNK}
    assert {200, 400} <= statuses


@pytest.mark.parametrize("path", BODIES)
def test_anything_within_may_be_wrong(client: httpx.Client, path: str) -> None:
    rng, statuses = random.Random(path), set()
    for _ in range(300):
        body = mutated(BODIES[path], rng)
        try:
            statuses.add(check(path, client.post(path, json=body)))
        except AssertionError as error:
            raise AssertionError(json.dumps(body)) from error
    assert {200, 400} <= statuses
