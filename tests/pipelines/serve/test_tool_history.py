"""Tool calls and their results in the history of a chat, tools in prompts, and text about them that forges nothing."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from chat_client import CHAT, TOOLS, USER, Writing, ask, named, refused, tool
from chat_models import FAMILIES, chat_vocabulary

pytestmark = pytest.mark.slow  # together they take seconds


def prompt_of(client: httpx.Client, **body: Any) -> str:
    """The prompt as the template renders it."""
    response = client.post("/tokenize", json={"messages": USER, **body})
    assert response.status_code == 200, response.text
    return str(client.post("/detokenize", json={"tokens": response.json()["tokens"]}).json()["prompt"])


def test_tools_are_in_the_prompt_as_templates_want_them(writing: Writing) -> None:
    strict = [tool(strict=True, unknown=None), {"function": {"name": "bare"}}]
    prompt = prompt_of(writing(), tools=strict)
    assert json.dumps(tool()) in prompt and '{"type": "function", "function": {"name": "bare"}}' in prompt
    assert "get_weather" not in prompt_of(writing(), tools=strict, tool_choice="none")
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named("bare")]}}
    prompt = prompt_of(writing(), tools=strict, tool_choice=allowed)
    assert "bare" in prompt and "get_weather" not in prompt


def call(arguments: Any, call_id: str = "c1", name: str = "get_weather") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def history(*calls: Any, **more: Any) -> list[dict[str, Any]]:
    results = [{"role": "tool", "tool_call_id": each["id"], "content": f"result {each['id']}"} for each in calls]
    return [*USER, {"role": "assistant", "content": None, "tool_calls": list(calls), **more}, *results]


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ('{"city": "Köln",\n"days": 1e2}', '{"city": "Köln", "days": 100.0}'),
        ({"city": "Rome"}, '{"city": "Rome"}'),
        ('{"city": "cut', '{"city": "cut'),
        ("[1]", "[1]"),
        ('{"x": NaN}', '{"x": NaN}'),
        ('{"x": "\\ud800"}', '{"x": "\\ud800"}'),
        ('{"a":' * 300 + "1" + "}" * 300, '{"a":' * 300 + "1" + "}" * 300),
        ("", "{}"),
        (None, "{}"),
    ],
)
def test_arguments_in_the_history_are_objects_for_templates(writing: Writing, arguments: Any, written: str) -> None:
    prompt = prompt_of(writing(), messages=history(call(arguments)), tools=TOOLS)
    assert f'<tool_call>\n{{"name": "get_weather", "arguments": {written}}}\n</tool_call>' in prompt
    assert "<tool_response>\nresult c1\n</tool_response>" in prompt


def test_a_history_of_calls_in_every_family(writing: Writing) -> None:
    for family in FAMILIES:
        client = writing("Fine.", family=family)
        messages = history(call('{"city": "Rome"}'), content="Let me see.")
        for body in ({"tools": TOOLS}, {}):
            prompt = prompt_of(client, messages=messages, **body)
            assert prompt.count("Rome") == 1 and "result c1" in prompt, (family, prompt)
            assert ask(client, messages=messages, **body)["message"]["content"] == "Fine."


def test_templates_that_know_no_tools_get_them_as_text(writing: Writing) -> None:
    client = writing('{"name": "get_weather", "parameters": {"city": "Rome"}}', family="gemma3")
    prompt = prompt_of(client, tools=[tool()], messages=[{"role": "system", "content": "Be brief."}, *USER])
    assert "<start_of_turn>user\nBe brief.\n\nYou have access to these functions:\n{" in prompt
    assert json.dumps(tool()["function"]) in prompt
    assert ask(client, tools=[tool()])["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    prompt = prompt_of(client, messages=history(call('{"city": "Rome"}')))
    assert '<start_of_turn>model\n{"name": "get_weather", "parameters": {"city": "Rome"}}' in prompt
    assert "Result of get_weather: result c1" in prompt and "You have access" not in prompt


def test_results_have_the_names_of_their_calls(writing: Writing) -> None:
    messages = history(call("{}", "a", "get_weather"), call("{}", "b", "other"))
    client = writing("Fine.", family="gemma4")
    prompt = prompt_of(client, messages=messages, tools=TOOLS)
    assert 'response:get_weather{value:<|"|>result a<|"|>}' in prompt
    assert 'response:other{value:<|"|>result b<|"|>}' in prompt
    error = refused(client, messages=history(call("no object")), tools=TOOLS)
    assert "must be a JSON object" in error["message"]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "tool_calls": {}}, ""),  # as good as none
        ({"role": "assistant", "tool_calls": "x"}, "messages.1.tool_calls"),
        ({"role": "assistant", "tool_calls": ["x"]}, "messages.1.tool_calls.0.function"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "messages.1.tool_calls.0.function"),
        ({"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}, "messages.1.tool_calls.0.function"),
        ({"role": "assistant", "tool_calls": [call(5)]}, "messages.1.tool_calls.0.function.arguments"),
        ({"role": "assistant", "tool_calls": [{**call("{}"), "id": []}]}, "messages.1.tool_calls.0.id"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages.1"),
        ({"role": "function", "name": "f", "content": "x"}, "messages.1"),
        ({"role": "tool", "tool_call_id": {}, "content": "x"}, "messages.1.tool_call_id"),
        ({"role": "tool", "name": 5, "content": "x"}, "messages.1.name"),
    ],
)
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_histories_of_another_shape_are_a_400(
    writing: Writing, family: str, message: dict[str, Any], param: str
) -> None:
    client = writing("Fine.", family=family)
    messages = [*USER, message, *USER]
    if not param:
        ask(client, messages=messages, tools=TOOLS)
    else:
        assert refused(client, messages=messages, tools=TOOLS)["param"].startswith(param)


@pytest.mark.parametrize("family", ["qwen3", "gemma4", "gemma3"])
def test_numbers_that_cant_be_written_are_a_400(writing: Writing, family: str) -> None:
    client, digits = writing("Fine.", family=family), "1" * 5000
    tools = json.dumps([tool("f", {"maximum": 0})]).replace("0", digits)
    response = client.post(CHAT, content=f'{{"messages": {json.dumps(USER)}, "tools": {tools}}}')
    assert response.status_code == 400 and response.json()["error"]["code"] == "invalid_json"
    response = client.post(CHAT, json={"messages": history(call(f'{{"x": {digits}}}'))})
    assert response.status_code in (200, 400), response.text


def test_reasoning_comes_back_under_either_name(writing: Writing) -> None:
    for name in ("reasoning", "reasoning_content"):
        messages = history(call("{}"), **{name: "Hm, hm."})
        assert "<think>\nHm, hm.\n</think>" in prompt_of(writing(), messages=messages)


def with_text(text: str, family: str) -> dict[str, Any]:
    """Everything about tools that a user could write, with a text in it.

    Arguments are not among it where they are text of the assistant, whose text is taken as the model wrote it.
    """
    parameters = {"type": "object", "description": text, "properties": {"x": {"type": "string", "enum": [text]}}}
    messages = history(call(json.dumps({"x": text, "list": [text]})) if family != "gemma3" else call("{}"))
    messages[-1]["content"] = f"{text} {text}"
    return {"messages": messages, "tools": [tool("f", parameters, description=f"{text} d")]}


@pytest.mark.parametrize("family", FAMILIES)
def test_text_about_tools_forges_no_control_token(writing: Writing, family: str) -> None:
    vocabulary = chat_vocabulary(family)
    special = FAMILIES[family].special
    ids = {vocabulary.ids(token)[0] for token in special}
    client = writing("Fine.", family=family)

    def num_controls(text: str) -> int:
        response = client.post("/tokenize", json=with_text(text, family))
        assert response.status_code == 200, response.text
        return sum(token in ids for token in response.json()["tokens"])

    assert {token: num_controls(token) for token in special} == dict.fromkeys(special, num_controls("text"))
