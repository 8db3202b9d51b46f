"""Turns of texts that no model wrote, and the named events of streams."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import httpx
from fake_model import steps_of
from serving import ChatTokenizer, LiveServer, eventually, model_of, post_and_leave

from pipelines.context import TextChunk, TextContext
from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.sampling.params import SamplingParams
from pipelines.serve.chat.fields import ChatRequest
from pipelines.serve.chat.turn import ChatTurn
from pipelines.serve.decoding import Decoding
from pipelines.serve.errors import ApiError
from pipelines.serve.generation import Generation
from pipelines.serve.sse import EventSource
from pipelines.serve.token_texts import TokenTexts
from pipelines.text.parsers import answer_format

TEMPLATE = "</think> <tool_call>"  # as Qwen 3's has them
THINKING = "<think>\nhm\n</think>\n\nok"
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1, "b"]}}\n</tool_call>'
TEXTS = TokenTexts(ChatTokenizer())  # type: ignore[arg-type]


def turn_of(pieces: Sequence[str], finish_reason: Any = "stop", error: ApiError | None = None, **body: Any) -> ChatTurn:
    """The turn of an answer that came in pieces, a token each; error: ends it in place of the finish reason."""
    context = TextContext("0", [1, 2, 3], SamplingParams(max_new_tokens=100).resolved())
    generation = Generation([context], lambda *_: None)
    for i, piece in enumerate(pieces):
        ends = i == len(pieces) - 1 and error is None
        entry = TokenLogProbs(5 + i % 50, -1.0 - i, ())
        generation.push(0, TextChunk(piece, (5,), (entry,), finish_reason if ends else None))
    if error is not None:
        generation.fail(error)
    context.finish(finish_reason)
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "A"}], **body})
    return ChatTurn(request, Decoding(new_parser=lambda context: answer_format(TEMPLATE).parser(["f"])), generation)


def written(events: EventSource) -> list[Any]:
    """The events of an answer."""

    async def run() -> list[str]:
        return [event async for event in events]

    return named_events("".join(asyncio.run(run())).split("\n"))


def named_events(lines: Iterable[str]) -> list[Any]:
    """The events of a stream, each a line with its name, which its data repeat as their type, and one with the data."""
    events = []
    for block in "\n".join(lines).strip("\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}" and data.startswith("data: ")
    return events


def stream_named(client: httpx.Client, path: str, **body: Any) -> list[Any]:
    """The events of a streamed answer."""
    with client.stream("POST", path, json={"stream": True, **body}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        return named_events(response.iter_lines())


def leave_early(server: LiveServer, path: str, **body: Any) -> None:
    """Leaves an answer of 900 tokens twice, a streamed and a whole one; waits until nothing of them is left."""
    model_of(server).during_step = lambda: time.sleep(0.01)
    with server.client() as client, client.stream("POST", path, json={"stream": True, **body}) as response:
        next(response.iter_lines())
    eventually(lambda: server.service.num_admitted == 0)
    post_and_leave(server, path, lambda: server.service.num_admitted, **body)
    eventually(lambda: server.service.num_admitted == 0)
    assert 0 < len(steps_of(server.pipe)) < 500
