"""Blocks and events of messages with thinking and tool calls, from texts that no model wrote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from turns import CALL, THINKING, turn_of, written

from pipelines.serve.anthropic.answer import MessageAnswer
from pipelines.serve.anthropic.conversion import to_chat
from pipelines.serve.anthropic.fields import MessagesRequest
from pipelines.serve.chat.fields import ChatRequest
from pipelines.serve.chat.tool_fields import NamedToolChoice
from pipelines.serve.wire import to_json


def whole(pieces: Sequence[str], **turn: Any) -> Any:
    async def run() -> Any:
        return json.loads(to_json(await MessageAnswer(turn_of(pieces, **turn), "model").complete()))

    return asyncio.run(run())


def streamed(pieces: Sequence[str], **turn: Any) -> list[Any]:
    return written(MessageAnswer(turn_of(pieces, **turn), "model").events())


def put_together(events: Sequence[Any]) -> Any:
    """The message of a stream, as clients put it together; each block's deltas are of its type."""
    message = events[0]["message"]
    arguments: dict[int, str] = {}
    for event in events[1:]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
        if event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            kind = delta.pop("type")
            (field,) = delta
            if field == "partial_json":
                assert (kind, block["type"]) == ("input_json_delta", "tool_use")
                arguments[event["index"]] = arguments.get(event["index"], "") + delta[field]
            else:
                assert kind == f"{field}_delta" and field in block
                block[field] += delta[field]
        if event["type"] == "message_delta":
            message.update(event["delta"], usage=event["usage"])
    for index, text in arguments.items():
        message["content"][index]["input"] = json.loads(text)
    return message


def shown(message: Any) -> Any:
    """A message without its ids, which differ."""
    message.pop("id")
    for block in message["content"]:
        if block["type"] == "tool_use":
            assert block.pop("id").startswith("call_")
    return message


@pytest.mark.parametrize("pieces", [[THINKING + CALL + CALL], list(THINKING + CALL + CALL)], ids=["whole", "pieces"])
def test_thinking_text_and_calls_are_blocks_in_their_order(pieces: list[str]) -> None:
    message = shown(whole(pieces))
    call = {"type": "tool_use", "name": "f", "input": {"a": [1, "b"]}}
    thinking = {"type": "thinking", "thinking": "hm", "signature": ""}
    assert message["content"] == [thinking, {"type": "text", "text": "ok"}, call, call]
    assert message["stop_reason"] == "tool_use"
    assert shown(put_together(streamed(pieces))) == message


def test_the_events_of_each_block() -> None:
    events = streamed(list(THINKING + CALL))
    assert [event["type"] for event in (events[0], *events[-2:])] == ["message_start", "message_delta", "message_stop"]
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert starts[0] == {"type": "thinking", "thinking": "", "signature": ""} and starts[2].pop("id")
    assert starts[1:] == [{"type": "text", "text": ""}, {"type": "tool_use", "name": "f", "input": {}}]
    for index in range(3):
        block = [event for event in events if event.get("index") == index]
        first, *deltas, last = [event["type"] for event in block]
        assert (first, last) == ("content_block_start", "content_block_stop")
        assert deltas and set(deltas) == {"content_block_delta"}
    signatures = [event for event in events if event.get("delta", {}).get("type") == "signature_delta"]
    assert signatures == [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": ""}}
    ]


def test_a_call_that_is_cut_has_the_input_so_far() -> None:
    message = whole(list(CALL[: CALL.index("b") + 1]), finish_reason="length", max_tokens=1)
    assert message["stop_reason"] == "max_tokens" and message["content"][0]["input"] == {"a": [1]}
    message = whole(list(CALL[: CALL.index(": {") + 3]), finish_reason="length")
    assert message["content"][0]["input"] == {}


def test_tools_thinking_and_formats_are_those_of_the_chat() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    request = {
        "messages": [{"role": "user", "content": "A"}],
        "max_tokens": 5,
        "tools": [{"name": "f", "description": "d", "input_schema": schema, "cache_control": {"type": "ephemeral"}}],
        "output_config": {"format": {"type": "json_schema", "schema": schema}, "effort": "low"},
        "stop_sequences": ["A"],
        "top_k": 3,
    }

    def converted(**fields: Any) -> ChatRequest:
        return to_chat(MessagesRequest.model_validate({**request, **fields}))

    chat = converted().model_dump(by_alias=True, exclude_none=True)
    function = {"name": "f", "description": "d", "parameters": schema}
    assert chat["tools"] == [{"type": "function", "function": function}]
    json_schema = {"name": "output", "schema": schema}
    assert chat["response_format"] == {"type": "json_schema", "json_schema": json_schema}
    assert (chat["max_tokens"], chat["stop"], chat["top_k"], chat["reasoning_effort"]) == (5, ["A"], 3, "low")
    assert "chat_template_kwargs" not in chat and "parallel_tool_calls" not in chat
    older = converted(output_config=None, output_format={"type": "json_schema", "schema": schema})
    assert older.response_format == converted().response_format
    for kind, expected in (("auto", "auto"), ("any", "required"), ("none", "none")):
        assert converted(tool_choice={"type": kind}).tool_choice == expected
    named = converted(tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True})
    assert isinstance(named.tool_choice, NamedToolChoice) and named.tool_choice.function.name == "f"
    assert named.parallel_tool_calls is False
    for kind, is_enabled in (("enabled", True), ("adaptive", True), ("disabled", False)):
        thinking = {"type": kind, "budget_tokens": 1024}
        assert converted(thinking=thinking).chat_template_kwargs == {"enable_thinking": is_enabled}


def test_blocks_become_messages() -> None:
    source = {"type": "base64", "media_type": "image/gif", "data": "R0"}
    image, url = {"type": "image", "source": source}, {"type": "image", "source": {"type": "url", "url": "https://a"}}
    document = {"type": "document", "title": "T", "source": {"type": "text", "data": "D", "media_type": "text/plain"}}
    nested = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "N"}, url]}}
    results = [
        {"type": "tool_result", "tool_use_id": "1", "content": "one"},
        {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "two"}, image]},
        {"type": "tool_result", "tool_use_id": "3", "content": "no", "is_error": True},
        {"type": "tool_result", "tool_use_id": "4"},
    ]
    answer = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "ok"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"a": "\u00e9"}},
        {"type": "tool_use", "id": "2", "name": "g", "input": {}},
    ]
    messages = [
        {"role": "user", "content": [document, nested]},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": [*results, {"type": "text", "text": "B"}]},
    ]
    chat = to_chat(MessagesRequest.model_validate({"messages": messages, "max_tokens": 1}))

    def text(text: str) -> Any:
        return {"type": "text", "text": text}

    def picture(url: str) -> Any:
        return {"type": "image_url", "image_url": {"url": url}}

    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": "\u00e9"}}},
        {"id": "2", "type": "function", "function": {"name": "g", "arguments": {}}},
    ]
    tool = {"role": "tool"}
    assert [message.model_dump(exclude_unset=True) for message in chat.messages] == [
        {"role": "user", "content": [text("T"), text("D"), text("N"), picture("https://a")]},
        {"role": "assistant", "content": [text("ok")], "reasoning_content": "hm", "tool_calls": calls},
        {**tool, "tool_call_id": "1", "content": [text("one")]},
        {**tool, "tool_call_id": "2", "content": [text("two"), picture("data:image/gif;base64,R0")]},
        {**tool, "tool_call_id": "3", "content": [text("Error:"), text("no")]},
        {**tool, "tool_call_id": "4", "content": []},
        {"role": "user", "content": [text("B")]},
    ]
    assert chat.continue_final_message is None


@pytest.mark.parametrize(
    ("last", "is_continued"),
    [
        ([{"type": "text", "text": "A"}], True),
        ([{"type": "text", "text": ""}], False),
        ([], False),
        ([{"type": "text", "text": "A"}, {"type": "tool_use", "id": "1", "name": "f", "input": {}}], False),
    ],
)
def test_a_last_message_with_text_is_continued(last: list[Any], is_continued: bool) -> None:
    messages = [{"role": "user", "content": "A"}, {"role": "assistant", "content": last}]
    chat = to_chat(MessagesRequest.model_validate({"messages": messages, "max_tokens": 1}))
    expected = (True, False) if is_continued else (None, None)
    assert (chat.continue_final_message, chat.add_generation_prompt) == expected
