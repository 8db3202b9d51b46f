"""Reasoning and tool calls in answers, from texts that no model wrote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from serving import ChatTokenizer

from pipelines.context import TextChunk, TextContext
from pipelines.sampling.params import SamplingParams
from pipelines.serve.chat.answer import ChatAnswer
from pipelines.serve.chat.fields import ChatRequest
from pipelines.serve.chat.turn import ChatTurn
from pipelines.serve.decoding import Decoding
from pipelines.serve.generation import Generation
from pipelines.serve.token_texts import TokenTexts
from pipelines.serve.wire import to_json
from pipelines.text.parsers import answer_format

TEMPLATE = "</think> <tool_call>"  # as Qwen 3's has them
TEXT = '<think>\nhm\n</think>\n\nok<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def answer_of(pieces: Sequence[str], **body: Any) -> ChatAnswer:
    context = TextContext("0", [1, 2, 3], SamplingParams().resolved())
    generation = Generation([context], lambda *_: None)
    for i, piece in enumerate(pieces):
        generation.push(0, TextChunk(piece, (5,), finish_reason="stop" if i == len(pieces) - 1 else None))
    context.finish("stop")
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "A"}], **body})
    decoding = Decoding(new_parser=lambda context: answer_format(TEMPLATE).parser(["f"]))
    turn = ChatTurn(request, decoding, generation)
    return ChatAnswer(turn, "model", TokenTexts(ChatTokenizer()))  # type: ignore[arg-type]


def test_a_whole_answer_has_its_parts() -> None:
    async def run() -> Any:
        return json.loads(to_json(await answer_of([TEXT]).complete()))

    (choice,) = asyncio.run(run())["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls" and message["content"] == "ok"
    assert message["reasoning"] == message["reasoning_content"] == "hm"
    (call,) = message["tool_calls"]
    assert call["id"] and call["type"] == "function"
    assert call["function"]["name"] == "f" and json.loads(call["function"]["arguments"]) == {"a": 1}


def test_a_stream_tells_the_id_and_the_name_of_a_call_once() -> None:
    async def run() -> list[Any]:
        events = [event async for event in answer_of(list(TEXT), stream=True).events()]
        return [json.loads(event.removeprefix("data: ")) for event in events]

    choices = [choice for chunk in asyncio.run(run()) for choice in chunk["choices"]]
    deltas = [choice["delta"] for choice in choices]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "ok"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert all(call["index"] == 0 and "function" in call for call in calls)
    assert calls[0].keys() == {"index", "id", "type", "function"} and calls[0]["function"]["name"] == "f"
    assert all(call.keys() == {"index", "function"} for call in calls[1:])
    assert all(call["function"].keys() == {"arguments"} for call in calls[1:])
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"a": 1}
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["tool_calls"]
