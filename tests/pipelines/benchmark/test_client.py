"""One request: what servers answer, and what of it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from threading import Event
from time import perf_counter
from typing import Any

import pytest
from stub_server import DONE, STREAM, Answer, StubServer, as_json, chunk, event, stub_server, usage

from pipelines.benchmark.client import ServerClient
from pipelines.benchmark.outcome import Outcome, RequestPlan
from pipelines.benchmark.settings import BenchmarkSettings
from pipelines.errors import InputError

pytestmark = pytest.mark.slow  # together they take seconds

PATH, CHAT_PATH = "/v1/completions", "/v1/chat/completions"
ANSWER = (chunk("a"), chunk("b"), chunk("", "length"), usage(7, 2), DONE)


@pytest.fixture
def server() -> Iterator[StubServer]:
    with stub_server() as server:
        yield server


def send(server: StubServer, answer: Answer | None = None, **settings: Any) -> Outcome:
    """Sends one request to a server that gives this answer."""

    async def go() -> Outcome:
        client = ServerClient(BenchmarkSettings(url=server.url, model="m", **settings))
        try:
            return await client.send(RequestPlan("some text", 5, 3), perf_counter)
        finally:
            await client.close()

    if answer is not None:
        server.routes[PATH] = server.routes[CHAT_PATH] = lambda _: answer
    return asyncio.run(go())


def stream(*events: bytes) -> Answer:
    return 200, STREAM, [*events, b""]


def bytes_of(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def delta(**fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


def test_a_completion(server: StubServer) -> None:
    outcome = send(server, stream(*ANSWER), api_key="secret")
    assert outcome.error is None
    assert (outcome.num_prompt_tokens, outcome.num_output_tokens, len(outcome.chunk_times_s)) == (7, 2, 2)
    assert outcome.sent_s <= outcome.chunk_times_s[0] <= outcome.chunk_times_s[1] <= outcome.end_s
    assert server.bodies(PATH) == [
        {
            "model": "m",
            "prompt": "some text",
            "max_tokens": 5,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
    ]
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_a_chat_whose_first_chunk_has_the_role_alone(server: StubServer) -> None:
    events = (
        delta(role="assistant", content=""),
        delta(reasoning_content="hm"),
        delta(content="yes"),
        chunk("", "stop"),
    )
    outcome = send(
        server, stream(*events, DONE), endpoint="chat", ignore_eos=False, extra_body={"max_tokens": None, "n": 1}
    )
    assert outcome.error is None
    assert len(outcome.chunk_times_s) == 2
    assert (outcome.num_prompt_tokens, outcome.num_output_tokens) == (3, 2)  # calibrated, counted
    (body,) = server.bodies(CHAT_PATH)
    assert body["messages"] == [{"role": "user", "content": "some text"}]
    assert (body["max_completion_tokens"], body["n"]) == (5, 1)
    assert not {"max_tokens", "ignore_eos", "prompt"} & body.keys()


@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_comments_line_ends_and_cuts_inside_characters(size: int, server: StubServer) -> None:
    text = b": ping\n\n" + chunk("Größe 🎈") + b"event: x\n" + b"".join(ANSWER)
    outcome = send(
        server, (200, "text/event-stream; charset=utf-8", [*bytes_of(text.replace(b"\n", b"\r\n"), size), b""])
    )
    assert outcome.error is None
    assert len(outcome.chunk_times_s) == 3


def test_usage_in_every_chunk_or_null(server: StubServer) -> None:
    counted = {"prompt_tokens": 7, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}
    events = (chunk("a", usage=None), chunk("b", "stop", usage=counted | {"completion_tokens": 2}))
    outcome = send(server, stream(chunk("x", usage=counted), *events, DONE))
    assert (outcome.num_prompt_tokens, outcome.num_output_tokens, outcome.num_cached_tokens) == (7, 2, 4)


@pytest.mark.parametrize("events", [(chunk("a", "stop"),), (chunk("a"), DONE), (chunk("a", "stop"), usage(1, 1))])
def test_a_stream_is_complete_with_a_finish_reason_or_done(events: Sequence[bytes], server: StubServer) -> None:
    assert send(server, stream(*events)).error is None


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (as_json({"error": {"message": "The queue is full.", "code": 1}}, 429), "HTTP 429", "The queue is full."),
        (as_json({"detail": [{"msg": "bad"}]}, 422), "HTTP 422", '[{"msg": "bad"}]'),
        (as_json({"error": "flat"}, 500), "HTTP 500", "flat"),
        ((500, "text/html", [b"<h1>Internal\n  Server Error</h1>", b""]), "HTTP 500", "<h1>Internal Server Error</h1>"),
        ((503, "text/plain", [b""]), "HTTP 503", "HTTP 503"),
        (as_json({"choices": []}), "no stream", "application/json"),
        (stream(b"data: {oops\n\n"), "bad event", "{oops"),
        (stream(b"data: [1]\n\n"), "bad event", "[1]"),
        (stream(event({"choices": 7})), "bad event", "7"),
        (stream(event({"choices": [7]})), "bad event", "7"),
        (stream(chunk("a"), event({"choices": [], "usage": {"prompt_tokens": "x"}})), "bad event", "usage"),
        (stream(chunk("a"), event({"error": {"message": "It broke."}}), DONE), "error event", "It broke."),
        (stream(chunk("a"), chunk("b")), "cut stream", "without a finish_reason"),
        (stream(), "cut stream", "without a finish_reason"),
        ((200, STREAM, [chunk("a"), chunk("b")]), "cut stream", "incomplete"),
        ((200, STREAM, [chunk("a"), chunk("b")[:20]]), "cut stream", "incomplete"),
        ((200, STREAM, []), "connection", "incomplete"),
        (stream(chunk("", "stop"), usage(7, 0), DONE), "empty answer", "no text"),
    ],
)
def test_failures(answer: Answer, kind: str, message: str, server: StubServer) -> None:
    outcome = send(server, answer)
    assert outcome.error is not None and outcome.error.kind == kind
    assert message in str(outcome.error)
    assert outcome.end_s > 0


def test_an_answer_that_does_not_come_in_time(server: StubServer) -> None:
    def waiting() -> Iterator[bytes]:
        yield chunk("a")
        may_end.wait(30)

    may_end = Event()
    server.routes[PATH] = lambda _: (200, STREAM, waiting())
    outcome = send(server, timeout_s=0.2)
    may_end.set()
    assert outcome.error is not None and outcome.error.kind == "timeout"


def test_a_server_that_is_not_there(server: StubServer) -> None:
    server.url = "http://127.0.0.1:1"
    outcome = send(server)
    assert outcome.error is not None and outcome.error.kind == "connection"


def count(server: StubServer, how: str, **settings: Any) -> int | None:
    async def go() -> int | None:
        client = ServerClient(BenchmarkSettings(url=f"{server.url}/v1/", model="m", **settings))
        try:
            return await getattr(client, f"count_by_{how}")("some text")  # type: ignore[no-any-return]
        finally:
            await client.close()

    return asyncio.run(go())


def test_counts_by_tokenize(server: StubServer) -> None:
    assert count(server, "tokenize") is None
    server.routes["/tokenize"] = lambda _: as_json({"tokens": [5, 6, 7]})
    assert count(server, "tokenize") == count(server, "tokenize", endpoint="chat") == 3
    _, text, chat = server.bodies("/tokenize")
    assert text["prompt"] == text["content"] == "some text"
    assert chat["messages"] == [{"role": "user", "content": "some text"}] and "prompt" not in chat
    for answer in (
        as_json({"tokens": []}),
        as_json([]),
        as_json({"tokens": [1]}, 500),
        (200, "text/plain", [b"x", b""]),
    ):
        server.routes["/tokenize"] = lambda _, answer=answer: answer  # type: ignore[misc]
        assert count(server, "tokenize") is None


def test_counts_by_usage(server: StubServer) -> None:
    server.routes[PATH] = lambda _: as_json({"choices": [{"text": "a"}], "usage": {"prompt_tokens": 9}})
    assert count(server, "usage") == 9
    (body,) = server.bodies(PATH)
    assert body["max_tokens"] == 1 and not {"stream", "stream_options"} & body.keys()
    server.routes[PATH] = lambda _: as_json({"choices": []})
    assert count(server, "usage") is None


def found_model(server: StubServer, model: str | None = None) -> str:
    async def go() -> str:
        client = ServerClient(BenchmarkSettings(url=server.url, model=model))
        try:
            await client.find_model()
        finally:
            await client.close()
        return client.model

    return asyncio.run(go())


def test_the_model_is_the_first_of_the_server_unless_one_is_named(server: StubServer) -> None:
    assert found_model(server) == "stub"
    assert found_model(server, "named") == "named"
    del server.routes["/v1/models"]
    assert found_model(server, "named") == "named"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (as_json({"data": []}), "an empty list"),
        (as_json({"error": {"message": "key?"}}, 401), "HTTP 401"),
        (as_json({"error": {"message": "loading"}}, 503), "HTTP 503"),
        (as_json({"detail": "Not Found"}, 404), "HTTP 404"),
        ((200, "text/html", [b"<html>", b""]), "no list of models"),
        (as_json([]), "no list of models"),
    ],
)
def test_no_model(answer: Answer, reason: str, server: StubServer) -> None:
    server.routes["/v1/models"] = lambda _: answer
    with pytest.raises(InputError, match=reason):
        found_model(server)


def test_a_server_that_can_not_be_reached(server: StubServer) -> None:
    server.url = "http://127.0.0.1:1"
    for model in (None, "named"):
        with pytest.raises(InputError, match=r"can't reach http://127.0.0.1:1 .*: check --url"):
            found_model(server, model)
