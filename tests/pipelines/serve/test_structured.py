"""Structured output: the fields that ask for it, in chat and in completions, and what it goes with."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from chat_client import CHAT, TEXT, ask, ask_streamed, refused
from chat_models import chat_vocabulary, writing_pipeline
from fake_model import assert_idle
from serving import LiveServer, eventually, post_in_background, serving, stream

from pipelines.sampling.constraints import compiler

pytestmark = pytest.mark.slow  # together they take seconds

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
LARK = 'start: "sum " NUMBER\nNUMBER: /[1-9]{2}/'
RANDOM: dict[str, Any] = {"temperature": 1, "max_tokens": 400, "seed": 0}
DIRECT: dict[str, Any] = {**RANDOM, "chat_template_kwargs": {"enable_thinking": False}}
THINK = chat_vocabulary("qwen3").ids("<think>")[0]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with serving(writing_pipeline("qwen3")) as server:
        yield server
    assert_idle(server.pipe)


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def is_valid(text: str) -> bool:
    value = json.loads(text)
    return list(value) == ["name", "n"] and isinstance(value["name"], str) and 0 <= value["n"] <= 99


def is_object(text: str) -> bool:
    return isinstance(json.loads(text), dict)


def matches(pattern: str) -> Any:
    return re.compile(pattern).fullmatch


FORMS: list[tuple[str, dict[str, Any], Any]] = [
    ("json_schema", {"response_format": JSON_SCHEMA}, is_valid),
    ("json_object", {"response_format": {"type": "json_object"}}, is_object),
    ("json_object with a schema", {"response_format": {"type": "json_object", "schema": SCHEMA}}, is_valid),
    ("json_schema with a schema", {"response_format": {"type": "json_schema", "schema": SCHEMA}}, is_valid),
    ("regex", {"response_format": {"type": "regex", "pattern": "[a-c]{3}"}}, matches("[a-c]{3}")),
    ("grammar", {"response_format": {"type": "grammar", "grammar": LARK}}, matches("sum [1-9]{2}")),
    ("structured json", {"structured_outputs": {"json": SCHEMA}}, is_valid),
    ("structured json text", {"structured_outputs": {"json": json.dumps(SCHEMA)}}, is_valid),
    ("structured regex", {"structured_outputs": {"regex": "[a-c]{3}", "json": None}}, matches("[a-c]{3}")),
    ("structured choice", {"structured_outputs": {"choice": ["yes", "nö\n"]}}, lambda text: text in ("yes", "nö\n")),
    ("structured grammar", {"structured_outputs": {"grammar": LARK}}, matches("sum [1-9]{2}")),
    ("structured object", {"structured_outputs": {"json_object": True}}, is_object),
    ("guided_json", {"guided_json": SCHEMA}, is_valid),
    ("guided_json text", {"guided_json": json.dumps(SCHEMA)}, is_valid),
    ("guided_regex", {"guided_regex": "[a-c]{3}", "guided_grammar": ""}, matches("[a-c]{3}")),
    ("guided_choice", {"guided_choice": ["yes", "no"]}, matches("yes|no")),
    ("guided_grammar", {"guided_grammar": LARK}, matches("sum [1-9]{2}")),
    ("json_schema field", {"json_schema": SCHEMA}, is_valid),
    ("regex field", {"regex": "[a-c]{3}", "grammar": "", "json_schema": ""}, matches("[a-c]{3}")),
    ("grammar field", {"grammar": LARK}, matches("sum [1-9]{2}")),
]  # fmt: skip


@pytest.mark.parametrize(("body", "is_right"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_every_field_holds_chats_and_texts(client: httpx.Client, body: dict[str, Any], is_right: Any) -> None:
    for seed in range(2):
        given = {**RANDOM, **body, "seed": seed}
        choice = ask(client, **given)
        assert is_right(choice["message"]["content"]) and choice["finish_reason"] == "stop", choice
        assert ask_streamed(client, **given).content == choice["message"]["content"]
        text = client.post(TEXT, json={"prompt": "A", **given}).json()["choices"][0]
        assert is_right(text["text"]) and text["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format", "no schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "no schema"),
        ({"response_format": {"type": "regex"}}, "response_format", "pattern is missing"),
        ({"response_format": {"type": "structural_tag"}}, "response_format", "'structural_tag' is not supported"),
        ({"response_format": {"type": "json_schema", "schema": {"not": {}}}}, "response_format", "not"),
        ({"response_format": {"type": "regex", "pattern": "("}}, "response_format", "unclosed group"),
        ({"structured_outputs": {"json": {"uniqueItems": True, "type": "array"}}}, "structured_outputs.json", "unique"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "no JSON"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json", ""),
        ({"structured_outputs": {"regex": "a(?!b)"}}, "structured_outputs.regex", "look-around"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "give 1 to"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice", "empty"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "not supported"),
        ({"structured_outputs": {"json": {}, "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern", ""),
        ({"guided_regex": "(a?){5000}a{5000}"}, "guided_regex", "regex"),
        ({"guided_grammar": "begin: /a/"}, "guided_grammar", "grammar"),
        ({"grammar": 'root ::= "a"'}, "grammar", "GBNF"),
        ({"guided_grammar": '# sql\nroot  ::= "a" b\nb ::= "b"'}, "guided_grammar", "Lark"),
        ({"ebnf": 'root ::= "a"'}, "ebnf", "not supported"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex", "both"),
        ({"response_format": JSON_SCHEMA, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex", "both"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", "both"),
        ({"json_schema": {"multipleOf": 1e-300}}, "json_schema", "multipleOf"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_cant_be_held_is_a_400_that_names_it(
    client: httpx.Client, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    error = refused(client, path, **body)
    assert error["param"].startswith(param) and words in error["message"], error
    assert error["type"] == "invalid_request_error"


def test_choices_differ_and_each_is_valid(client: httpx.Client) -> None:
    response = client.post(
        CHAT, json={"messages": [{"role": "user", "content": "A"}], "n": 5, **RANDOM, "response_format": JSON_SCHEMA}
    )
    texts = [choice["message"]["content"] for choice in response.json()["choices"]]
    assert all(map(is_valid, texts)) and len(set(texts)) == 5
    response = client.post(TEXT, json={"prompt": ["A", "BC"], "n": 2, **RANDOM, "echo": True, "guided_json": SCHEMA})
    texts = [choice["text"] for choice in response.json()["choices"]]
    assert [text[: text.index("{")] for text in texts] == ["A", "A", "BC", "BC"]
    assert all(is_valid(text[text.index("{") :]) for text in texts)


def test_limits_and_stops_cut(client: httpx.Client) -> None:
    cut = ask(client, **{**DIRECT, "max_tokens": 3}, response_format=JSON_SCHEMA)
    assert cut["finish_reason"] == "length" and '{"name": "'.startswith(cut["message"]["content"][:10])
    stopped = ask(client, **DIRECT, response_format=JSON_SCHEMA, stop='me"')
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", 'me"')
    assert stopped["message"]["content"] == '{"na'


def test_every_token_has_its_log_probability(client: httpx.Client) -> None:
    choice = ask(client, **DIRECT, response_format=JSON_SCHEMA, logprobs=True, top_logprobs=1)
    entries = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"] or b"?") for entry in entries).startswith(b'{"name": "')
    assert is_valid(choice["message"]["content"])
    streamed = stream(
        client, CHAT, messages=[{"role": "user", "content": "A"}], logprobs=True, **DIRECT, regex="[ab]{5}"
    )
    choices = [choice for chunk in streamed for choice in chunk["choices"]]
    tokens = [entry["token"] for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert "".join(tokens) == "".join(choice["delta"].get("content", "") for choice in choices) and len(tokens) > 1


def thinking(client: httpx.Client, **body: Any) -> Any:
    """An answer of a model that likes to think."""
    return ask(client, **RANDOM, logit_bias={str(THINK): 100}, **body)["message"]


def test_a_form_holds_what_follows_the_thinking(client: httpx.Client) -> None:
    message = thinking(client, response_format=JSON_SCHEMA)
    assert message["reasoning_content"] == message["reasoning"] and is_valid(message["content"])
    given = {**RANDOM, "logit_bias": {str(THINK): 100}, "response_format": JSON_SCHEMA, "seed": 3}
    whole, streamed = ask(client, **given)["message"], ask_streamed(client, **given)
    assert whole["reasoning_content"] and streamed.message == whole
    for off in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
        message = thinking(client, response_format=JSON_SCHEMA, **off)
        assert "reasoning" not in message and is_valid(message["content"])
    on = {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}
    assert "reasoning" in thinking(client, response_format=JSON_SCHEMA, **on)


def test_without_a_parser_of_the_reasoning_all_of_it_is_held() -> None:
    with serving(writing_pipeline("qwen3"), reasoning_parser="none") as server, server.client() as client:
        assert is_valid(thinking(client, response_format=JSON_SCHEMA)["content"])


@pytest.mark.parametrize("family", ["gemma4", pytest.param("gemma4-31b", marks=pytest.mark.slow)])
def test_gemma4_thinks_only_where_the_prompt_says_so(family: str) -> None:
    opener = str(chat_vocabulary(family).ids("<|channel>")[0])
    with serving(writing_pipeline(family)) as server, server.client() as client:
        given = {**RANDOM, "logit_bias": {opener: 100}, "response_format": JSON_SCHEMA}
        message = ask(client, **given)["message"]
        assert "reasoning" not in message and is_valid(message["content"])
        message = ask(client, **given, chat_template_kwargs={"enable_thinking": True})["message"]
        assert message["reasoning"] and is_valid(message["content"])


def begun(content: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "A"}, {"role": "assistant", "content": content}]
    return {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}


def test_a_message_that_is_continued_is_held_from_its_beginning(client: httpx.Client) -> None:
    text = '{"name": "x", "n'
    for content in (text, [{"type": "text", "text": text}], f"<think>\nHm.\n</think>\n\n{text}"):
        message = ask(client, **RANDOM, **begun(content), response_format=JSON_SCHEMA)["message"]
        assert is_valid(text + message["content"]) and "reasoning" not in message
    error = refused(client, **begun("Here it is: "), response_format=JSON_SCHEMA)
    assert error["param"] == "messages" and "response_format" in error["message"]
    message = ask(client, **RANDOM, **begun('{"name": "x", "n": 12}'), response_format=JSON_SCHEMA)["message"]
    assert message["content"] == ""


def test_thinking_that_is_continued_stays_thinking(client: httpx.Client) -> None:
    message = ask(client, **RANDOM, **begun("<think>\nHm"), response_format=JSON_SCHEMA)["message"]
    assert message["reasoning"] and is_valid(message["content"])
    free = ask(client, **{**RANDOM, "max_tokens": 3}, **begun("<think>\nHm"))["message"]
    assert free["reasoning"] and not free["content"]


def test_a_slow_schema_keeps_nobody_waiting(client: httpx.Client, server: LiveServer, monkeypatch: Any) -> None:
    is_slow, may_end, compile_now = threading.Event(), threading.Event(), compiler._matcher

    def slowly(kind: str, vocabulary: Any, grammar: str) -> Any:
        if "slow" in grammar:
            is_slow.set()
            assert may_end.wait(30)
        return compile_now(kind, vocabulary, grammar)

    monkeypatch.setattr(compiler, "_matcher", slowly)
    results = [
        post_in_background(server, TEXT, prompt="A", guided_choice=["slow", name], max_tokens=9) for name in "abc"
    ]
    try:
        assert is_slow.wait(30)
        assert ask(client, max_tokens=3)["finish_reason"] == "length"
        assert ask(client, **RANDOM, regex="[xy]{3}")["finish_reason"] == "stop"
        assert client.get("/ready").status_code == 200
    finally:
        may_end.set()
    assert {result().status_code for result in results} == {200}


def test_a_grammar_is_compiled_once_for_all_that_wait(server: LiveServer, monkeypatch: Any) -> None:
    num_compiled, compile_now = [], compiler._matcher

    def counted(kind: str, vocabulary: Any, grammar: str) -> Any:
        num_compiled.append(1)
        return compile_now(kind, vocabulary, grammar)

    monkeypatch.setattr(compiler, "_matcher", counted)
    body = {"prompt": "A", "n": 4, "regex": "once[ab]{2}", "max_tokens": 20}
    results = [post_in_background(server, TEXT, **body) for _ in range(8)]
    assert {result().status_code for result in results} == {200}
    assert len(num_compiled) == 1


def test_what_others_hold_up_is_a_503(server: LiveServer, client: httpx.Client, monkeypatch: Any) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(compiler, "_matcher", lambda *arguments: may_end.wait(30))
    monkeypatch.setattr(compiler, "TIME_LIMIT_S", 0.1)
    try:
        for i in range(4):
            assert "takes more than 0.1 s" in refused(client, regex=f"slow {i}")["message"]
        error = refused(client, status=503, regex="slow too")
        assert error["code"] == "constraints_busy" and error["param"] == "regex"
    finally:
        may_end.set()
    monkeypatch.undo()
    eventually(lambda: client.post(TEXT, json={"prompt": "A", "regex": "[ab]"}).status_code == 200)


def test_the_vocabulary_is_prepared_before_the_server_is_ready(server: LiveServer) -> None:
    vocabulary = server.service.constraints._compiler
    assert vocabulary is not None and vocabulary._vocabulary is not None


def test_a_tokenizer_that_cant_be_used_stops_constraints_alone(caplog: pytest.LogCaptureFixture) -> None:
    pipe = writing_pipeline("qwen3")

    class Opaque:
        def __getattr__(self, name: str) -> Any:
            return getattr(pipe.prompts.tokenizer, name)

        def to_json(self) -> str:
            raise ValueError("it is written in Python")

    pipe.tokenizer = Opaque()  # type: ignore[assignment]
    with serving(pipe) as server, server.client() as client:
        error = refused(client, response_format=JSON_SCHEMA)
        assert error["code"] == "constraints_unavailable" and "it is written in Python" in error["message"]
        assert ask(client, max_tokens=3)["finish_reason"] == "length"
    assert "it is written in Python" in caplog.text


def test_the_fields_are_described(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("ChatRequest", "CompletionRequest"):
        assert {"structured_outputs", "guided_json", "regex", "grammar", "json_schema"} <= schemas[name][
            "properties"
        ].keys()
    assert schemas["StructuredOutputs"]["properties"].keys() == {"json", "regex", "choice", "grammar", "json_object"}
