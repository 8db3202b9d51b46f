"""The openai package with tools and structured output, with strict validation of what it gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from chat_models import writing_pipeline
from openai import pydantic_function_tool
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel
from serving import MODEL, serving

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
RANDOM: dict[str, Any] = {"model": MODEL, "messages": USER, "temperature": 1, "seed": 1, "max_tokens": 2000}


class Person(BaseModel):
    name: str
    kind: Literal["adult", "child"]
    friends: list[str]


class GetWeather(BaseModel):
    """Tells the weather."""

    city: str
    unit: Literal["C", "F"]


@pytest.fixture(scope="module")
def api() -> Iterator[openai.OpenAI]:
    with (
        serving(writing_pipeline("qwen3")) as server,
        openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
        ) as api,
    ):
        yield api


def test_parse_gives_an_object(api: openai.OpenAI) -> None:
    answer = api.chat.completions.parse(**RANDOM, response_format=Person)
    person = answer.choices[0].message.parsed
    assert isinstance(person, Person) and person.kind in ("adult", "child")


def test_parse_gives_the_arguments_of_a_call(api: openai.OpenAI) -> None:
    answer = api.chat.completions.parse(**RANDOM, tools=[pydantic_function_tool(GetWeather)], tool_choice="required")
    assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
    calls = answer.choices[0].message.tool_calls
    assert calls and all(isinstance(call.function.parsed_arguments, GetWeather) for call in calls)


def test_the_helper_for_streams_puts_calls_together(api: openai.OpenAI) -> None:
    tools = [pydantic_function_tool(GetWeather)]
    with api.chat.completions.stream(**RANDOM, tools=tools, tool_choice="required") as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    whole = api.chat.completions.parse(**RANDOM, tools=tools, tool_choice="required")
    calls, same = final.choices[0].message.tool_calls, whole.choices[0].message.tool_calls
    assert calls and same and [call.function.arguments for call in calls] == [call.function.arguments for call in same]
    assert isinstance(calls[0].function.parsed_arguments, GetWeather) and final.choices[0].finish_reason == "tool_calls"


def test_a_loop_of_calls(api: openai.OpenAI) -> None:
    """The message with the calls goes back as it came, with a result for each."""
    tools = [pydantic_function_tool(GetWeather)]
    message = api.chat.completions.create(**RANDOM, tools=tools, tool_choice="required").choices[0].message
    assert message.tool_calls
    history: list[Any] = [*USER, message]
    history += [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    request = {**RANDOM, "messages": history, "max_tokens": 5}
    assert api.chat.completions.create(**request, tools=tools).choices[0].finish_reason == "length"


def test_a_schema_that_cant_be_held_is_a_bad_request(api: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError) as error:
        api.chat.completions.create(**RANDOM, response_format=form)
    assert error.value.param == "response_format" and error.value.type == "invalid_request_error"
