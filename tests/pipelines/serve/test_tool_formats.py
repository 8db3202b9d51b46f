"""Each family's tool calls over HTTP, with its published template: forced ones, and ones that a model would write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import jsonschema
import pytest
from chat_client import ask, ask_streamed, without_ids
from chat_models import FAMILIES, WritingModel, chat_vocabulary, writing_pipeline
from fake_model import assert_idle
from serving import LiveServer, serving
from structured import PUBLISHED_FOLDER

pytestmark = pytest.mark.slow  # together they take seconds

S = {"type": "string"}
PARAMETERS: list[dict[str, Any]] = [
    {"type": "object", "properties": {}, "additionalProperties": False},
    {"properties": {"city": S, "days": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["city", "days"]},
    {"properties": {"ö": {"enum": ["a", "", 1, None, True]}, "B": {"const": {"k": [1, "x"]}}}, "required": ["ö", "B"]},
    {"properties": {"l": {"type": "array", "items": {"type": "array", "items": S, "maxItems": 2}, "minItems": 1, "maxItems": 3}}, "required": ["l"]},  # noqa: E501
    {"properties": {"u": {"anyOf": [S, {"type": "integer"}, {"$ref": "#/$defs/x"}]}}, "required": ["u"], "$defs": {"x": {"type": "null"}}},  # noqa: E501
    {"properties": {"p": {"type": "string", "pattern": "^[a-z]{2}\\d$"}, "d": {"type": "string", "format": "date"}}, "required": ["p", "d"], "additionalProperties": False},  # noqa: E501
]  # fmt: skip


def tool(name: str, parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


TOOLS = [tool("get_weather", PARAMETERS[1]), tool("stop", PARAMETERS[0])]


@dataclass(frozen=True)
class Served:
    """A family that is served. is_published: with its published tokenizer."""

    name: str
    is_published: bool
    server: LiveServer
    client: httpx.Client

    def write(self, *texts: str) -> None:
        """Makes the model write these texts; none: it babbles."""
        vocabulary, model = chat_vocabulary(self.name, self.is_published), self.server.pipe.model
        assert isinstance(model, WritingModel)
        model.write([*map(vocabulary.ids, texts)] or None)


QUICK = ("qwen3", "gemma4")
SERVED = [
    *((name, False) if name in QUICK else pytest.param((name, False), marks=pytest.mark.slow) for name in FAMILIES),
    *(pytest.param((name, True), marks=pytest.mark.slow) for name, family in FAMILIES.items() if family.published),
]


@pytest.fixture(scope="module", params=SERVED, ids=lambda param: f"{param[0]}{' published' * param[1]}")
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    name, is_published = request.param
    if is_published and PUBLISHED_FOLDER is None:
        pytest.skip("PUBLISHED_TOKENIZERS names no folder with published tokenizers")
    with (
        serving(writing_pipeline(name, is_published=is_published)) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        yield Served(name, is_published, server, client)
    assert_idle(server.pipe)


def check(message: dict[str, Any], tools: list[dict[str, Any]]) -> None:
    """Checks that a message has calls alone, each valid by its tool's schema."""
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in tools}
    assert message["content"] is None and message["tool_calls"]
    for call in message["tool_calls"]:
        kind = jsonschema.Draft202012Validator
        schema = {"type": "object", **schemas[call["function"]["name"]]}
        kind(schema, format_checker=kind.FORMAT_CHECKER).validate(json.loads(call["function"]["arguments"]))


@pytest.mark.parametrize("number", range(len(PARAMETERS)))
def test_a_named_call_is_valid(served: Served, number: int) -> None:
    served.write()
    tools = [*TOOLS, tool("f", PARAMETERS[number])]
    choice = {"type": "function", "function": {"name": "f"}}
    body = {"tools": tools, "tool_choice": choice, "temperature": 1, "seed": number, "max_tokens": 2000}
    answer = ask(served.client, **body)
    assert answer["finish_reason"] == "tool_calls" and len(answer["message"]["tool_calls"]) == 1
    check(answer["message"], tools)
    if not served.is_published:
        assert without_ids(ask_streamed(served.client, **body).message) == without_ids(answer["message"])


def test_required_calls_are_valid(served: Served) -> None:
    served.write()
    tools = [tool(f"tool_{i}", parameters) for i, parameters in enumerate(PARAMETERS)]
    for seed in range(2):
        for more in ({}, {"parallel_tool_calls": False}, {"chat_template_kwargs": {"enable_thinking": True}}):
            body = {"tools": tools, "tool_choice": "required", "temperature": 1, "seed": seed, "max_tokens": 2000}
            answer = ask(served.client, **body, **more)
            assert answer["finish_reason"] == "tool_calls"
            check(answer["message"], tools)
            assert len(answer["message"]["tool_calls"]) == 1 or more != {"parallel_tool_calls": False}


CITY = {"city": 'São "Paulo"', "days": 3}
AS_JSON = json.dumps(CITY, ensure_ascii=False)
# What a model of the family writes -> content, reasoning, calls
Written = tuple[str, str | None, str, list[tuple[str, Any]]]
QWEN3 = f'<tool_call>\n{{"name": "get_weather", "arguments": {AS_JSON}}}\n</tool_call>'
QWEN3_STOP = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
GEMMA4 = '<|tool_call>call:get_weather{city:<|"|>São "Paulo"<|"|>,days:3}<tool_call|>'
BARE = f'{{"name": "get_weather", "parameters": {AS_JSON}}}'
CALL: tuple[str, Any] = ("get_weather", CITY)
STOP: tuple[str, Any] = ("stop", {})
WRITTEN: dict[str, list[Written]] = {
    "qwen3": [
        (QWEN3, None, "", [CALL]),
        (f"<think>\nLet me see.\n</think>\n\n{QWEN3}", None, "Let me see.", [CALL]),
        (f"Well:\n{QWEN3}\n{QWEN3_STOP}", "Well:", "", [CALL, STOP]),
        ("<think>\n\n</think>\n\nIt is sunny.", "It is sunny.", "", []),
    ],
    "gemma4": [
        (GEMMA4, None, "", [CALL]),
        (f"<|channel>thought\nLet me see.\n<channel|>{GEMMA4}", None, "Let me see.", [CALL]),
        (f"{GEMMA4}<|tool_call>call:stop{{}}<tool_call|>", None, "", [CALL, STOP]),
        ("It is sunny.", "It is sunny.", "", []),
    ],
    "llama3": [
        (BARE, None, "", [CALL]),
        (f"<|python_tag|>{BARE}", None, "", [CALL]),
        (f'{BARE}; {{"name": "stop", "parameters": {{}}}}', None, "", [CALL, STOP]),
        ('{"city": "x"}', '{"city": "x"}', "", []),
        ("It is sunny.", "It is sunny.", "", []),
    ],
    "gemma3": [
        (BARE, None, "", [CALL]),
        (f'```json\n{BARE}\n{{"name": "stop", "parameters": {{}}}}\n```', None, "", [CALL, STOP]),
        (f"Well:\n```tool_code\n{BARE}\n```", "Well:", "", [CALL]),
        ("It is sunny.", "It is sunny.", "", []),
    ],
}  # fmt: skip


def test_what_a_model_writes_is_parsed(served: Served) -> None:
    written = WRITTEN[served.name.partition("-")[0]]
    has_thinking = served.name != "qwen3-instruct"
    for text, content, reasoning, calls in written:
        if "<think>" in text and not has_thinking:
            continue
        served.write(text)
        choice, streamed = ask(served.client, tools=TOOLS), ask_streamed(served.client, tools=TOOLS)
        message = choice["message"]
        found = [
            (each["function"]["name"], json.loads(each["function"]["arguments"]))
            for each in message.get("tool_calls", [])
        ]
        assert (message["content"], message.get("reasoning_content", ""), found) == (content, reasoning, calls)
        assert choice["finish_reason"] == streamed.finish_reason == ("tool_calls" if calls else "stop")
        assert without_ids(streamed.message) == without_ids(message)


def test_a_call_and_its_result_come_back_as_the_model_wrote_them(served: Served) -> None:
    """What the model wrote, in the history, is rendered as it wrote it, whatever the client did to the JSON."""
    text = {"qwen3": QWEN3, "gemma4": GEMMA4, "llama3": BARE, "gemma3": BARE}[served.name.partition("-")[0]]
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps(CITY)}}
    question = {"role": "user", "content": "How is it?"}
    messages = [
        question,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    ]
    tokens = served.client.post("/tokenize", json={"messages": messages, "tools": TOOLS}).json()["tokens"]
    prompt = served.client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert text in prompt and "sunny" in prompt.partition(text)[2]
