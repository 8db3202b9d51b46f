"""Tools in chat completions: choices among them, calls in answers and in the history, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from chat_client import CHAT, TOOLS, USER, Streamed, Writing, ask, ask_streamed, named, refused, tool, without_ids
from chat_models import chat_vocabulary, writing_pipeline
from fake_model import assert_idle
from metric_samples import read_metrics
from serving import chat_pipeline, serving, stream

pytestmark = pytest.mark.slow  # together they take seconds

RANDOM: dict[str, Any] = {"temperature": 1, "max_tokens": 1000, "seed": 0}
END = str(chat_vocabulary("qwen3").text.eos_token_ids[0])


def call_text(arguments: str = '{"city": "Paris"}', name: str = "get_weather") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.fixture(scope="module")
def babbling() -> Iterator[httpx.Client]:
    """A model that babbles, so that what its answers have in common is what they are held to."""
    with serving(writing_pipeline("qwen3")) as server, server.client() as client:
        yield client
    assert_idle(server.pipe)


def test_a_call_has_every_key_that_clients_need(writing: Writing) -> None:
    client = writing(call_text())
    choice = ask(client, tools=TOOLS)
    (call,) = choice["message"]["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}],
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
        "stop_reason": None,
    }


ANSWERS = {
    "a call": call_text(),
    "text and a call": f"Well:\n{call_text()}",
    "two calls": f"{call_text()}\n{call_text('{}', 'other')}",
    "thinking and a call": f"<think>\nI should {call_text()}.\n</think>\n\n{call_text()}",
    "text": "There is no <tool_call in this.",
    "an unknown tool": call_text("{}", "unknown"),
    "a broken call": f"{call_text()[:-20]} and more",
    "what is no call": '<tool_call>\n{"city": "Paris"}\n</tool_call>',
}


@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS.keys())
def test_a_stream_gives_the_same_message(writing: Writing, text: str) -> None:
    client = writing(text)
    bodies: list[dict[str, Any]] = [{}, {"skip_special_tokens": False}, {"logprobs": True}, {"stop": "never"}]
    for body in bodies:
        whole, streamed = ask(client, tools=TOOLS, **body), ask_streamed(client, tools=TOOLS, **body)
        assert without_ids(streamed.message) == without_ids(whole["message"])
        assert streamed.finish_reason == whole["finish_reason"]
        assert len(whole["logprobs"]["content"]) > 5 if body.get("logprobs") else whole["logprobs"] is None


def test_arguments_are_streamed_while_they_are_written(writing: Writing) -> None:
    client = writing(call_text('{"city": "a rather long name of a city"}'))
    streamed = ask_streamed(client, tools=TOOLS)
    pieces = [delta["tool_calls"][0] for delta in streamed.deltas if "tool_calls" in delta]
    assert len(pieces) > 3 and pieces[0]["function"]["name"] == "get_weather"
    assert all(delta.keys() == {"tool_calls"} for delta in streamed.deltas[1:-1] if delta)


def test_ids_are_unique(writing: Writing) -> None:
    client = writing(f"{call_text()}\n{call_text()}")
    choices = client.post(CHAT, json={"messages": USER, "tools": TOOLS, "n": 3}).json()["choices"]
    ids = [call["id"] for choice in choices for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 6


def test_without_tools_nothing_is_parsed(writing: Writing) -> None:
    client = writing(call_text())
    bodies: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": None}, {"tools": TOOLS, "tool_choice": "none"}]
    for body in bodies:
        choice = ask(client, **body)
        assert choice["message"]["content"] == call_text() and choice["finish_reason"] == "stop"
        assert "tool_calls" not in choice["message"]


def check_arguments(message: dict[str, Any], names: set[str]) -> None:
    assert message["content"] is None and message["tool_calls"]
    for call in message["tool_calls"]:
        arguments = json.loads(call["function"]["arguments"])
        assert call["function"]["name"] in names
        assert arguments == {} if call["function"]["name"] == "other" else isinstance(arguments["city"], str)


CHOICES: list[tuple[Any, set[str]]] = [
    ("required", {"get_weather", "other"}),
    (named("get_weather"), {"get_weather"}),
    ({"type": "function", "name": "other"}, {"other"}),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("other")]}}, {"other"}),
    ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]}, {"other"}),
]


@pytest.mark.parametrize(("choice", "names"), CHOICES)
def test_forced_calls_are_valid(babbling: httpx.Client, choice: Any, names: set[str]) -> None:
    for seed in range(4):
        for more in ({}, {"parallel_tool_calls": False}, {"response_format": {"type": "json_object"}}):
            body = {**RANDOM, "seed": seed, "tools": TOOLS, "tool_choice": choice, **more}
            answer = ask(babbling, **body)
            assert answer["finish_reason"] == "tool_calls"
            check_arguments(answer["message"], names)
        streamed = ask_streamed(babbling, **body)
        assert without_ids(streamed.message) == without_ids(answer["message"])
        assert streamed.finish_reason == "tool_calls"


def test_a_named_tool_is_called_once(babbling: httpx.Client) -> None:
    for seed in range(4):
        body = {**RANDOM, "seed": seed, "logit_bias": {END: -9}, "tools": TOOLS, "tool_choice": named("get_weather")}
        assert len(ask(babbling, **body)["message"]["tool_calls"]) == 1


def test_one_call_at_most_where_it_is_forced(babbling: httpx.Client) -> None:
    counts: dict[bool, set[int]] = {True: set(), False: set()}
    for seed in range(12):
        for parallel in counts:
            body = {"tool_choice": "required", "parallel_tool_calls": parallel, "seed": seed, "logit_bias": {END: -9}}
            counts[parallel].add(len(ask(babbling, tools=TOOLS, **{**RANDOM, **body})["message"]["tool_calls"]))
    assert counts[False] == {1} and max(counts[True]) > 1


def test_a_forced_call_that_is_cut_ends_by_its_length(babbling: httpx.Client) -> None:
    for max_tokens in (1, 5, 12):
        body = {**RANDOM, "max_tokens": max_tokens, "tools": TOOLS, "tool_choice": named("get_weather")}
        choice = ask(babbling, **body)
        assert choice["finish_reason"] == "length"
        calls = choice["message"].get("tool_calls", [])
        assert all('{"city": "'.startswith(call["function"]["arguments"][:10]) for call in calls)
        assert ask_streamed(babbling, **body).finish_reason == "length"


def test_thinking_comes_before_a_forced_call(babbling: httpx.Client) -> None:
    think = str(chat_vocabulary("qwen3").ids("<think>")[0])
    body = {**RANDOM, "logit_bias": {think: 100}, "tools": TOOLS, "tool_choice": "required"}
    message = ask(babbling, **body)["message"]
    assert message["reasoning_content"]
    check_arguments(message, {"get_weather", "other"})
    assert "reasoning" not in ask(babbling, **body, reasoning_effort="none")["message"]


CUT: list[tuple[str, dict[str, Any], str, int]] = [
    ("a stop string in a call", {"stop": "Par"}, "stop", 1),
    ("a stop string after a call", {"stop": "</tool_call>"}, "tool_calls", 1),
    ("a stop string before a call", {"stop": "<tool_call>"}, "stop", 0),
    ("the limit", {"max_tokens": 14}, "length", 1),
]


@pytest.mark.parametrize(("body", "finish_reason", "num_calls"), [each[1:] for each in CUT], ids=[e[0] for e in CUT])
def test_only_whole_calls_are_calls_at_the_end(
    writing: Writing, body: dict[str, Any], finish_reason: str, num_calls: int
) -> None:
    client = writing(call_text())
    choice = ask(client, tools=TOOLS, **body)
    assert choice["finish_reason"] == finish_reason == ask_streamed(client, tools=TOOLS, **body).finish_reason
    assert len(choice["message"].get("tool_calls", [])) == num_calls


def test_a_call_that_the_model_leaves_unfinished_is_none_to_run(writing: Writing) -> None:
    client = writing(call_text()[:-25])
    assert ask(client, tools=TOOLS)["finish_reason"] == "stop"


def test_of_several_calls_the_first_is_kept(writing: Writing) -> None:
    text = f"Well: {call_text()}\n{call_text('{}', 'other')} and so on, and so on, and so on"
    client = writing(text)
    body = {"tools": TOOLS, "parallel_tool_calls": False}
    choice = ask(client, **body)
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Well:"
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["get_weather"]
    streamed = ask_streamed(client, **body)
    assert without_ids(streamed.message) == without_ids(choice["message"])
    assert streamed.finish_reason == "tool_calls"
    assert len(ask(client, tools=TOOLS)["message"]["tool_calls"]) == 2


def ends(client: httpx.Client) -> tuple[float, float]:
    """The number of choices that have stopped, and of those that were aborted."""
    samples = read_metrics(client)
    stopped, aborted = (samples.value("request_success_total", finished_reason=each) for each in ("stop", "abort"))
    return stopped, aborted


def test_a_choice_that_ends_early_leaves_the_others_alone(writing: Writing) -> None:
    long = "a text that goes on for quite a while without any call in it, " * 5
    client = writing(call_text() + long, long, long)
    body = {"messages": USER, "tools": TOOLS, "parallel_tool_calls": False, "n": 3}
    before = ends(client)
    answer = client.post(CHAT, json=body).json()
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["tool_calls", "stop", "stop"]
    assert answer["choices"][2]["message"]["content"] == long
    stopped, aborted = ends(client)
    assert (stopped - before[0], aborted - before[1]) == (3, 0)


def test_strict_tools_are_held_to_their_schemas(babbling: httpx.Client) -> None:
    """Beside text, which stays free; a tool that is not strict may be called with any arguments."""
    opener = str(chat_vocabulary("qwen3").ids("<tool_call>")[0])
    strict = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    num_calls = num_texts = 0
    for seed in range(8):
        body = {**RANDOM, "seed": seed, "tools": [tool("pick", strict, strict=True)], "logit_bias": {opener: 6}}
        message = ask(babbling, **body)["message"]
        num_texts += bool(message["content"])
        for call in message.get("tool_calls", []):
            num_calls += 1
            assert json.loads(call["function"]["arguments"])["n"] in (1, 2)
    assert num_calls and num_texts


def test_a_schema_counts_where_it_has_to_hold(babbling: httpx.Client) -> None:
    bad = {"type": "object", "properties": {"x": {"not": {}}}}
    ask(babbling, tools=[tool(), tool("bad", bad)], max_tokens=3)
    for body in (
        {"tools": [tool(), tool("bad", bad, strict=True)]},
        {"tools": [tool("bad", bad)], "tool_choice": "required"},
    ):
        error = refused(babbling, **body)
        assert error["param"] == "tools" and "'bad'" in error["message"] and "not" in error["message"], error
    error = refused(babbling, tools=[tool("f", {"type": "array"})], tool_choice=named("f"))
    assert error["param"] == "tools" and "of an object" in error["message"]


def test_an_answer_in_a_form_or_calls() -> None:
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}}
    with serving(writing_pipeline("qwen3")) as server, server.client() as client:
        opener = str(chat_vocabulary("qwen3").ids("<tool_call>")[0])
        kinds = set()
        for seed in range(8):
            for bias in (4, -4):
                body = {**RANDOM, "seed": seed, "logit_bias": {opener: bias}, "tools": TOOLS, **form}
                message = ask(client, **body)["message"]
                kinds.add("tool_calls" in message)
                if "tool_calls" in message:
                    check_arguments_are_objects(message)
                else:
                    assert json.loads(message["content"]) in ("yes", "no")
        assert kinds == {True, False}
        error = refused(client, tools=TOOLS, response_format={"type": "json_schema", "schema": {"not": {}}})
        assert error["param"] == "response_format"


def check_arguments_are_objects(message: dict[str, Any]) -> None:
    assert message["content"] is None
    assert all(isinstance(json.loads(call["function"]["arguments"]), dict) for call in message["tool_calls"])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": named("f")}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": named("f")}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": "get_weather"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": 5}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": [named("f")]}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "x", "tools": [named("other")]}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": [{"type": "mcp"}]}}, "tool_choice"),
    ({"tools": [tool(), tool()]}, "tools"),
    ({"tools": [tool("a b")]}, "tools.0.function.name"),
    ({"tools": [tool("")]}, "tools.0.function.name"),
    ({"tools": [tool('a"b')]}, "tools.0.function.name"),
    ({"tools": [tool("a" * 129)]}, "tools.0.function.name"),
    ({"tools": [tool("f", [])]}, "tools.0.function.parameters"),
    ({"tools": [{"type": "web_search"}]}, "tools.0"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0"),
    ({"tools": {}}, "tools"),
    ({"tools": [tool(f"f{i}") for i in range(1025)]}, "tools"),
    ({"tools": [tool(description="a" * 2**20)]}, "tools"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_what_is_refused_is_named(babbling: httpx.Client, body: dict[str, Any], param: str) -> None:
    error = refused(babbling, **body)
    assert error["param"].startswith(param) and error["type"] == "invalid_request_error", error


def test_names_that_clients_use_are_taken(babbling: httpx.Client) -> None:
    for name in ("a", "get-weather_2", "server.tool", "mcp/tool:run", "A" * 128):
        message = ask(babbling, **RANDOM, tools=[tool(name)], tool_choice=named(name))["message"]
        assert message["tool_calls"][0]["function"]["name"] == name


def test_a_model_whose_calls_nobody_knows() -> None:
    with serving(chat_pipeline()) as server, server.client() as client:
        error = refused(client, messages=[{"role": "user", "content": "A"}], tools=TOOLS)
        assert error["param"] == "tools" and "no format of its calls" in error["message"]


def test_a_name_with_half_of_a_character_is_content(writing: Writing) -> None:
    text = '<tool_call>\n{"name": "\\ud800", "arguments": {}}\n</tool_call>'
    client = writing(text)
    assert ask(client, tools=TOOLS)["message"]["content"] == text


def test_calls_of_each_choice_are_told_apart(babbling: httpx.Client) -> None:
    choices: dict[int, Streamed] = {}
    body = {"messages": USER, "tools": TOOLS, "tool_choice": "required", "n": 3, **RANDOM}
    for chunk in stream(babbling, CHAT, **body):
        for choice in chunk["choices"]:
            choices.setdefault(choice["index"], Streamed()).add(choice)
    assert choices.keys() == {0, 1, 2}
    for each in choices.values():
        check_arguments(each.message, {"get_weather", "other"})
