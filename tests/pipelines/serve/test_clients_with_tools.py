"""The openai and anthropic packages with tools, structured output and reasoning, in the format of Qwen 3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam, OutputConfigParam, ToolParam
from api_clients import anthropic_of, openai_of
from chat_models import writing_pipeline
from fake_model import assert_idle
from openai.types.responses import FunctionToolParam, ResponseInputParam
from openai.types.shared import ReasoningEffort
from pydantic import BaseModel, Field
from serving import MODEL, LiveServer, serving

pytestmark = pytest.mark.slow  # together they take seconds

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION: FunctionToolParam = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
TOOL: ToolParam = {"name": "weather", "input_schema": SCHEMA}
CONFIG: OutputConfigParam = {"format": {"type": "json_schema", "schema": SCHEMA}}
USER: list[MessageParam] = [{"role": "user", "content": "Hello"}]
SCRIPT = '<think>\nhm\n</think>\n\nok<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
RANDOM = {"temperature": 1, "seed": 1}


class City(BaseModel):
    name: str = Field(max_length=8)
    n: int = Field(ge=0, le=99)


@pytest.fixture(scope="module")
def babbling() -> Iterator[LiveServer]:
    with serving(writing_pipeline("qwen3")) as server:
        yield server
    assert_idle(server.pipe)


@pytest.fixture(scope="module")
def scripted() -> Iterator[LiveServer]:
    """Its model thinks, writes a text and calls a tool."""
    with serving(writing_pipeline("qwen3", [SCRIPT])) as server:
        yield server
    assert_idle(server.pipe)


@pytest.mark.parametrize("effort", ["none", "low"])
def test_a_response_is_parsed(babbling: LiveServer, effort: ReasoningEffort) -> None:
    with openai_of(babbling) as api:
        response = api.responses.parse(
            model=MODEL, input="Hello", text_format=City, reasoning={"effort": effort}, extra_body=RANDOM
        )
    assert isinstance(response.output_parsed, City) and response.status == "completed"


def test_a_call_of_a_response_is_forced(babbling: LiveServer) -> None:
    with openai_of(babbling) as api:
        response = api.responses.create(
            model=MODEL,
            input="Hello",
            tools=[FUNCTION],
            tool_choice="required",
            parallel_tool_calls=False,
            extra_body=RANDOM,
        )
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert call.name == "weather" and json.loads(call.arguments).keys() == {"city"}
    assert response.status == call.status == "completed"


def test_a_call_of_a_message_is_forced(babbling: LiveServer) -> None:
    with anthropic_of(babbling) as api:
        message = api.messages.create(
            model=MODEL,
            messages=USER,
            max_tokens=400,
            tools=[TOOL],
            tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            extra_body=RANDOM,
        )
    (use,) = [block for block in message.content if block.type == "tool_use"]
    assert message.stop_reason == "tool_use" and use.name == "weather" and use.input.keys() == {"city"}


@pytest.mark.parametrize("begun", ["", '{"city":'])
def test_a_message_has_the_form_that_was_asked_for(babbling: LiveServer, begun: str) -> None:
    messages: list[MessageParam] = [*USER, {"role": "assistant", "content": begun}] if begun else USER
    with anthropic_of(babbling) as api:
        message = api.messages.create(
            model=MODEL,
            messages=messages,
            max_tokens=400,
            output_config=CONFIG,
            thinking={"type": "disabled"},
            extra_body=RANDOM,
        )
    (block,) = message.content
    assert block.type == "text" and json.loads(begun + block.text).keys() == {"city"}


def test_reasoning_text_and_a_call_of_a_response(scripted: LiveServer) -> None:
    given: ResponseInputParam = [{"role": "user", "content": "Hello"}]
    with openai_of(scripted) as api:
        with api.responses.stream(model=MODEL, input=given, tools=[FUNCTION]) as stream:
            types = {event.type for event in stream}
            final = stream.get_final_response()
        reasoning, message, call = final.output
        assert call.type == "function_call" and call.parsed_arguments == {"city": "Bonn"}
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        items: Any = [*given, *(item.model_dump(exclude={"parsed_arguments"}) for item in final.output), result]
        again = api.responses.create(model=MODEL, input=items, tools=[FUNCTION])
    assert {"response.reasoning_text.delta", "response.function_call_arguments.delta"} <= types
    assert reasoning.type == "reasoning" and reasoning.content and reasoning.content[0].text == "hm"
    assert message.type == "message" and final.output_text == "ok"
    assert final.usage is not None and final.usage.output_tokens_details.reasoning_tokens > 0
    assert again.usage is not None and again.usage.input_tokens > final.usage.input_tokens


def blocks_of(message: anthropic.types.Message) -> tuple[str, str, object]:
    thinking, text, use = message.content
    assert thinking.type == "thinking" and text.type == "text" and use.type == "tool_use"
    assert message.stop_reason == "tool_use"
    return thinking.thinking, text.text, use.input


def test_thinking_text_and_a_call_of_a_message(scripted: LiveServer) -> None:
    with anthropic_of(scripted) as api:
        with api.messages.stream(model=MODEL, messages=USER, max_tokens=400, tools=[TOOL]) as stream:
            types = {event.type for event in stream}
            final = stream.get_final_message()
        whole = api.messages.create(model=MODEL, messages=USER, max_tokens=400, tools=[TOOL])
        (call_id,) = [block.id for block in whole.content if block.type == "tool_use"]
        history: list[MessageParam] = [
            *USER,
            {"role": "assistant", "content": whole.content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call_id, "content": "rain"}]},
        ]
        counted = api.messages.count_tokens(model=MODEL, messages=history, tools=[TOOL])
    assert {"thinking", "text", "input_json", "signature"} <= types
    assert blocks_of(final) == blocks_of(whole) == ("hm", "ok", {"city": "Bonn"})
    assert counted.input_tokens > whole.usage.input_tokens


def test_tools_are_part_of_the_prompt(scripted: LiveServer) -> None:
    with anthropic_of(scripted) as api:
        with_tools = api.messages.count_tokens(model=MODEL, messages=USER, tools=[TOOL]).input_tokens
        assert with_tools > api.messages.count_tokens(model=MODEL, messages=USER).input_tokens
    with openai_of(scripted) as api_of_openai:
        usage = api_of_openai.responses.create(model=MODEL, input="Hello", tools=[FUNCTION]).usage
    assert usage is not None and usage.input_tokens == with_tools
