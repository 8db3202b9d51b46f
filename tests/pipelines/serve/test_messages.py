"""Anthropic's Messages API over HTTP: every field of its answers, and its events."""

from __future__ import annotations

from typing import Any

import httpx
from fake_model import assert_idle
from messages_api import BODY, PATH, PROMPT, USER, ask, greedy, refused, text
from serving import MODEL, ChatTokenizer, LiveServer, chat_pipeline, model_of, serving
from turns import leave_early, stream_named


def usage(num_output_tokens: int = 12) -> dict[str, int]:
    cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return {"input_tokens": len(PROMPT), **cached, "output_tokens": num_output_tokens}


def test_a_message_has_every_key_that_clients_need(client: httpx.Client) -> None:
    message = ask(client)
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": greedy()}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": usage(),
    }


def test_a_stream_has_its_events_in_order_and_every_key_of_each(client: httpx.Client) -> None:
    start, block_start, *deltas, block_stop, delta, stop = stream_named(client, PATH, **BODY)
    message = start.pop("message")
    assert start == {"type": "message_start"} and message.pop("id").startswith("msg_")
    head = {"type": "message", "role": "assistant", "model": MODEL, "content": []}
    assert message == {**head, "stop_reason": None, "stop_sequence": None, "usage": usage(1)}
    assert block_start == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    for each in deltas:
        piece = {"type": "text_delta", "text": each["delta"]["text"]}
        assert each == {"type": "content_block_delta", "index": 0, "delta": piece}
    assert "".join(each["delta"]["text"] for each in deltas) == text(ask(client)) and len(deltas) > 1
    assert block_stop == {"type": "content_block_stop", "index": 0}
    end = {"stop_reason": "max_tokens", "stop_sequence": None}
    assert delta == {"type": "message_delta", "delta": end, "usage": usage()}
    assert stop == {"type": "message_stop"}


def end_of(message: Any) -> tuple[str, str | None]:
    return message["stop_reason"], message["stop_sequence"]


def test_the_reason_of_the_end_is_told(client: httpx.Client) -> None:
    stop = greedy()[5:7]
    for field in ({"stop_sequences": ["!!", stop]}, {"stop": stop}):
        message = ask(client, **field)
        assert end_of(message) == ("stop_sequence", stop)
        assert text(message) == greedy()[: greedy().index(stop)]
    event = stream_named(client, PATH, **BODY, stop_sequences=[stop])[-2]
    assert end_of(event["delta"]) == ("stop_sequence", stop)
    message = ask(client, ignore_eos=False, logit_bias={"0": 100})
    assert end_of(message) == ("end_turn", None) and message["content"] == [{"type": "text", "text": ""}]
    token = ChatTokenizer().encode(greedy()[3])
    assert end_of(ask(client, stop_token_ids=token)) == ("end_turn", None)
    long = [{"role": "user", "content": "A" * 980}]
    assert end_of(ask(client, messages=long, max_tokens=5000)) == ("model_context_window_exceeded", None)


def test_the_cached_prefix_is_told_apart() -> None:
    with serving(chat_pipeline(enable_prefix_caching=True)) as server, server.client() as client:
        messages = [{"role": "user", "content": "ABCDEFGH" * 40}]
        first, second = (ask(client, messages=messages)["usage"] for _ in range(2))
        start, *_ = stream_named(client, PATH, **{**BODY, "messages": messages})
    assert (first["cache_read_input_tokens"], second["cache_read_input_tokens"]) == (0, 256)
    assert first["input_tokens"] == second["input_tokens"] + 256
    assert start["message"]["usage"] == {**second, "output_tokens": 1}


def test_tokens_are_counted_as_they_are_rendered(client: httpx.Client) -> None:
    counted = client.post(f"{PATH}/count_tokens", json={"model": MODEL, "messages": USER, "system": "AB"})
    assert counted.json() == {"input_tokens": len("SAB;" + PROMPT)}
    assert ask(client, system="AB")["usage"]["input_tokens"] == len("SAB;" + PROMPT)
    refused(client, 404, path=f"{PATH}/count_tokens", model="other")


def test_a_row_that_fails_fails_its_message_alone(server: LiveServer, client: httpx.Client) -> None:
    model_of(server).nan_after = ChatTokenizer().encode(greedy())[2]
    try:
        error = refused(client, 500)
        *events, end = stream_named(client, PATH, **BODY)
    finally:
        model_of(server).nan_after = None
    assert error["type"] == "api_error" and "failed in the engine" in error["message"]
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
    ]
    assert end.pop("request_id") and end == {"type": "error", "error": error}
    assert text(ask(client)) == greedy()


def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    with serving() as server:
        leave_early(server, PATH, messages=USER, max_tokens=900, ignore_eos=True)
    assert_idle(server.pipe)
