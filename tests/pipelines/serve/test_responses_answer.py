"""Items and events of responses with reasoning and tool calls, from texts that no model wrote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from turns import CALL, TEXTS, THINKING, turn_of, written

from pipelines.serve.chat.tool_fields import NamedToolChoice
from pipelines.serve.errors import ApiError
from pipelines.serve.responses.answer import ResponseAnswer
from pipelines.serve.responses.conversion import to_chat
from pipelines.serve.responses.events import EventLog
from pipelines.serve.responses.fields import ResponsesRequest
from pipelines.serve.wire import to_json


def answer_of(pieces: Sequence[str], log: EventLog | None = None, turn: Any = None, **body: Any) -> ResponseAnswer:
    request = ResponsesRequest.model_validate({"input": "A", **body})
    return ResponseAnswer(turn or turn_of(pieces), request, "model", TEXTS, log or EventLog())


def whole(answer: ResponseAnswer) -> Any:
    async def run() -> Any:
        return json.loads(to_json(await answer.complete()))

    return asyncio.run(run())


def types(events: Sequence[Any]) -> list[str]:
    """Types of events, with deltas that follow each other as one."""
    names = [event["type"] for event in events]
    return [name for i, name in enumerate(names) if not (name.endswith(".delta") and names[i - 1 : i] == [name])]


def text_events(name: str) -> list[str]:
    return [
        "response.output_item.added",
        "response.content_part.added",
        f"response.{name}.delta",
        f"response.{name}.done",
        "response.content_part.done",
        "response.output_item.done",
    ]


CALL_EVENTS = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]
BEGIN = ["response.created", "response.in_progress"]


@pytest.mark.parametrize("pieces", [[THINKING + CALL], list(THINKING + CALL)], ids=["whole", "characters"])
def test_reasoning_text_and_calls_are_items_in_their_order(pieces: list[str]) -> None:
    response = whole(answer_of(pieces))
    reasoning, message, call = response["output"]
    assert reasoning.pop("id").startswith("rs_") and message.pop("id").startswith("msg_")
    assert call.pop("id").startswith("fc_") and call.pop("call_id").startswith("call_")
    assert json.loads(call.pop("arguments")) == {"a": [1, "b"]}
    content = [{"type": "reasoning_text", "text": "hm"}]
    assert reasoning == {"type": "reasoning", "status": "completed", "summary": [], "content": content}
    assert message["content"] == [{"type": "output_text", "text": "ok", "annotations": [], "logprobs": []}]
    assert call == {"type": "function_call", "status": "completed", "name": "f"}
    assert response["status"] == "completed"


def test_a_stream_tells_the_same_items_piece_by_piece() -> None:
    events = written(answer_of(list(THINKING + CALL + CALL)).events())
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    items = [*text_events("reasoning_text"), *text_events("output_text"), *CALL_EVENTS, *CALL_EVENTS]
    assert types(events) == [*BEGIN, *items, "response.completed"]
    output = events[-1]["response"]["output"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["item"] for event in done] == output and [event["output_index"] for event in done] == [0, 1, 2, 3]
    for event in events:
        if "item_id" in event:
            assert event["item_id"] == output[event["output_index"]]["id"]
            assert event.get("content_index", 0) == 0


def test_each_event_of_reasoning_and_calls_has_its_keys() -> None:
    events = written(answer_of([THINKING, CALL]).events())
    for event in events:
        del event["sequence_number"]
    first = {event["type"]: event for event in reversed(events)}
    reasoning_id = first["response.output_item.added"]["item"]["id"]
    item = {"id": reasoning_id, "type": "reasoning", "status": "in_progress", "summary": [], "content": []}
    place = {"item_id": reasoning_id, "output_index": 0, "content_index": 0}
    assert first["response.output_item.added"]["item"] == item
    assert first["response.content_part.added"] == {
        "type": "response.content_part.added",
        **place,
        "part": {"type": "reasoning_text", "text": ""},
    }
    name = "response.reasoning_text"
    assert first[f"{name}.delta"] == {"type": f"{name}.delta", **place, "delta": "hm"}
    assert first[f"{name}.done"] == {"type": f"{name}.done", **place, "text": "hm"}
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"][-1]
    call_id, name, arguments = added["id"], "response.function_call_arguments", '{"a": [1, "b"]}'
    call = {"type": "function_call", "status": "in_progress", "call_id": added["call_id"], "name": "f", "arguments": ""}
    place = {"item_id": call_id, "output_index": 2}
    assert added == {"id": call_id, **call}
    assert first[f"{name}.delta"] == {"type": f"{name}.delta", **place, "delta": arguments}
    assert first[f"{name}.done"] == {"type": f"{name}.done", **place, "name": "f", "arguments": arguments}


def test_tokens_of_the_reasoning_are_counted() -> None:
    pieces = ["<think>", "\n", "h", "m", "\n", "</think>", "\n\n", "o", "k"]
    usage = whole(answer_of(pieces))["usage"]
    assert usage["output_tokens"] == 9 and usage["output_tokens_details"] == {"reasoning_tokens": 7}
    assert whole(answer_of(["o", "k"]))["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}


def test_log_probabilities_are_those_of_the_message() -> None:
    pieces = ["<think>", "hm", "</think>", "\n\n", "o", "", "k", ""]
    response = whole(answer_of(pieces, top_logprobs=1))
    logprobs = response["output"][1]["content"][0]["logprobs"]
    assert [entry["logprob"] for entry in logprobs] == [-5.0, -6.0, -7.0, -8.0]
    events = written(answer_of(pieces, top_logprobs=1).events())
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for event in deltas for entry in event["logprobs"]] == logprobs
    assert [event["delta"] for event in deltas] == ["o", "k", ""]


def test_an_answer_that_is_cut_is_incomplete_in_its_last_item() -> None:
    text = THINKING + CALL
    for cut, statuses in ((9, ["incomplete"]), (len(THINKING), ["completed", "incomplete"]), (len(text) - 20, None)):
        events = written(answer_of([], turn=turn_of(list(text[:cut]), "length")).events())
        response = events[-1]["response"]
        assert events[-1]["type"] == "response.incomplete" and events[-2]["item"] == response["output"][-1]
        expected = statuses or ["completed", "completed", "incomplete"]
        assert [item["status"] for item in response["output"]] == expected
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][-1]["arguments"].startswith('{"a"')


def test_a_failure_ends_the_stream_with_what_there_is() -> None:
    log = EventLog()
    answer = answer_of([], log, turn_of(list(THINKING), error=ApiError(500, "it broke", code="engine_error")))

    async def run() -> Any:
        with pytest.raises(ApiError) as failure:
            async for _ in answer.events():
                pass
        return failure.value

    failed = json.loads(log.failure(asyncio.run(run())).split("data: ")[-1])["response"]
    assert failed["status"] == "failed" and failed["error"] == {"code": "server_error", "message": "it broke"}
    assert [item["status"] for item in failed["output"]] == ["completed", "incomplete"]


def test_a_failure_before_the_response_began_is_an_event_too() -> None:
    assert EventLog().failure(ApiError(400, "no", param="input")).count("event: ") == 1


def test_tools_and_formats_of_the_answer_are_those_of_the_chat() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    tool = {"type": "function", "name": "f", "description": "d", "parameters": schema, "strict": True}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    fields: dict[str, Any] = {
        "tools": [tool],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
    }
    request = ResponsesRequest.model_validate(
        {"input": "A", **fields, "text": {"format": form}, "reasoning": {"effort": "none"}, "top_k": 3, "seed": 4}
    )
    converted = to_chat(request)
    chat = converted.model_dump(by_alias=True, exclude_none=True, exclude={"tool_choice"})
    function = {name: value for name, value in tool.items() if name != "type"}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert isinstance(converted.tool_choice, NamedToolChoice) and converted.tool_choice.function.name == "f"
    assert chat["parallel_tool_calls"] is False and (chat["top_k"], chat["seed"]) == (3, 4)
    json_schema = {"name": "n", "schema": schema, "strict": True}
    assert chat["response_format"] == {"type": "json_schema", "json_schema": json_schema}
    assert chat["reasoning_effort"] == "none"
    response = whole(answer_of(["a"], **fields, text={"format": form}))
    assert response["tools"] == [tool] and response["tool_choice"] == fields["tool_choice"]
    assert response["text"] == {"format": form}


def test_a_choice_among_some_of_the_tools() -> None:
    tools = [{"type": "function", "name": name} for name in "fg"]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    response = whole(answer_of(["a"], tools=tools, tool_choice=choice))
    assert response["tool_choice"] == choice
    defaults = {"description": None, "parameters": None, "strict": None}
    assert response["tools"] == [{**tool, **defaults} for tool in tools]


def test_items_become_messages() -> None:
    items = [
        {"role": "user", "content": "A"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]},
        {"type": "reasoning", "id": "rs_2", "summary": [], "content": [{"type": "reasoning_text", "text": "and"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "call_2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "1"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "2"}]},
        {"type": "reasoning", "id": "rs_3", "summary": [], "encrypted_content": "x"},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"type": "reasoning", "id": "rs_4", "summary": [], "content": [{"type": "reasoning_text", "text": "lost"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://a/b.png", "detail": "low"}]},
    ]
    request = ResponsesRequest.model_validate({"input": items, "instructions": "S"})
    messages = [message.model_dump(exclude_unset=True) for message in to_chat(request).messages]
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "A"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "ok"}],
            "reasoning_content": "hm\n\nand",
            "tool_calls": calls,
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "2"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}]},
    ]
