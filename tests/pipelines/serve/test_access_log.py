"""The line of a request in the log: its tokens, times and ends, and nothing of its text."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from serving import Held, LiveServer, chat_pipeline, eventually, post_and_leave, post_in_background, serving, stream

from pipelines.commands.serve import JsonFormatter
from pipelines.context import RequestTimes, TextContext
from pipelines.serve.access_log import GenerationNotes, log_request, noting_generations
from pipelines.serve.generation import Generation

pytestmark = pytest.mark.slow  # together they take seconds

PATH = "/v1/completions"
TEXT = {"prompt": "ABCDEF", "max_tokens": 4, "ignore_eos": True}
WORK = ("prompt_tokens", "cached_tokens", "output_tokens", "queue_s", "first_token_s", "finish_reasons")


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with serving(chat_pipeline(enable_prefix_caching=True)) as server:
        yield server


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level("INFO", "pipelines"):
        yield caplog


def record_of(log: pytest.LogCaptureFixture, number: int = -1) -> logging.LogRecord:
    """The line of a completion, the latest unless a number says otherwise; it is written after the answer."""
    return eventually(lambda: records(log))[number]


def records(log: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    lines = [record for record in log.records if record.name == "pipelines.serve.access"]
    return [record for record in lines if record.__dict__["path"] == PATH]


def work_of(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name in WORK}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_request_has_its_tokens_and_times(
    server: LiveServer, log: pytest.LogCaptureFixture, is_streamed: bool
) -> None:
    with server.client() as client:
        if is_streamed:
            stream(client, PATH, **TEXT, n=2)
        else:
            client.post(PATH, json={**TEXT, "n": 2})
    record = record_of(log)
    work = work_of(record)
    assert tuple(work) == WORK
    assert 0 <= work.pop("queue_s") <= work.pop("first_token_s") <= record.__dict__["seconds"]
    tokens = {"prompt_tokens": 6, "cached_tokens": 0, "output_tokens": 8}
    assert work == {**tokens, "finish_reasons": {"length": 2}}
    assert " prompt_tokens=6 cached_tokens=0 output_tokens=8 queue_s=0." in record.getMessage()
    assert " finish_reasons=length:2 " in record.getMessage()


def test_as_json_it_has_the_same_fields(server: LiveServer, log: pytest.LogCaptureFixture) -> None:
    with server.client() as client:
        client.post(PATH, json=TEXT, headers={"X-Request-Id": "mine"})
    entry = json.loads(JsonFormatter().format(record_of(log)))
    assert entry["request_id"] == "mine" and entry["status"] == 200 and entry["finish_reasons"] == {"length": 1}
    assert entry["queue_s"] >= 0 and entry["output_tokens"] == 4
    assert "ABCDEF" not in log.text and "ABCDEF" not in json.dumps(entry)


def test_tokens_from_the_cache_are_told(server: LiveServer, log: pytest.LogCaptureFixture) -> None:
    body = {**TEXT, "prompt": [[3] * 300, [4] * 10]}
    with server.client() as client:
        for _ in range(2):
            client.post(PATH, json=body)
    eventually(lambda: len(records(log)) == 2)
    assert [work_of(record)["cached_tokens"] for record in records(log)] == [0, 256]


def test_what_never_reached_the_engine_has_no_tokens(server: LiveServer, log: pytest.LogCaptureFixture) -> None:
    with server.client() as client:
        assert client.post(PATH, json={"prompt": 5}, headers={"X-Request-Id": "a"}).status_code == 400
    record = record_of(log)
    assert not work_of(record) and record.getMessage().endswith("s a")


def test_polls_have_a_line_where_something_is_wrong(log: pytest.LogCaptureFixture) -> None:
    waiting = LiveServer(chat_pipeline())
    with waiting.client() as client:
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
        waiting.may_load.set()
        eventually(lambda: client.get("/ready").status_code == 200)
        client.post(PATH, json=TEXT)
    record_of(log)  # in their order
    waiting.begin_shutdown()
    waiting.wait()
    lines = [(each.__dict__["path"], each.__dict__["status"]) for each in log.records if "status" in each.__dict__]
    assert set(lines) == {("/ready", 503), (PATH, 200)}


def test_requests_at_once_have_lines_of_their_own(server: LiveServer, log: pytest.LogCaptureFixture) -> None:
    bodies = [{**TEXT, "prompt": "A" * length, "max_tokens": length} for length in range(1, 9)]
    for result in [post_in_background(server, PATH, **body) for body in bodies]:
        assert result().status_code == 200
    eventually(lambda: len(records(log)) == len(bodies))
    tokens = [(work["prompt_tokens"], work["output_tokens"]) for work in map(work_of, records(log))]
    assert sorted(tokens) == [(length, length) for length in range(1, 9)]


def test_a_client_that_left_has_a_line_too(server: LiveServer, log: pytest.LogCaptureFixture) -> None:
    held = Held(server)
    post_and_leave(server, PATH, held.is_held.is_set, **TEXT)
    record = record_of(log)
    held.may_go_on.set()
    assert work_of(record)["finish_reasons"] == {"cancelled": 1} and work_of(record)["output_tokens"] == 0


def generation(times: Sequence[RequestTimes], num_choices: int) -> Generation:
    contexts = [TextContext("0", [1] * 10, times=each) for each in times]
    for context in contexts:
        context.tokens += [2] * 3
        context.finish("stop")
    return Generation(contexts, lambda *_: None, num_choices, arrived=10.0)


def test_times_are_those_of_the_sequence_that_was_first(log: pytest.LogCaptureFixture) -> None:
    times = [RequestTimes(11.0, 15.0, 18.0, 30.0), RequestTimes(11.0, 13.0, 19.0, 20.0), RequestTimes(11.0)]
    scope = {"method": "POST", "path": PATH, "state": {"request_id": "x"}}
    log_request(scope, 200, 25.0, [generation([*times, times[0]], num_choices=2)])
    assert work_of(record_of(log)) == {
        "prompt_tokens": 20,
        "cached_tokens": 0,
        "output_tokens": 12,
        "queue_s": 2.0,
        "first_token_s": 8.0,
        "finish_reasons": {"stop": 4},
    }


def test_a_generation_that_no_request_began_is_noted_nowhere() -> None:
    notes, each = GenerationNotes(), generation([RequestTimes()], 1)
    notes.on_submit(each)
    with noting_generations() as noted:
        notes.on_submit(each)
    notes.on_submit(each)
    assert noted == [each]
