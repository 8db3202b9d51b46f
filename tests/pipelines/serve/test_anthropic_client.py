"""The anthropic package, with strict validation of what it gets."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pytest
from anthropic.types import MessageParam
from api_clients import anthropic_of
from serving import MODEL, LiveServer, model_of, serving

USER: list[MessageParam] = [{"role": "user", "content": "HELL1"}]
BODY = {"ignore_eos": True}


@pytest.fixture(scope="module")
def api(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic_of(server) as api:
        yield api


def test_a_message(api: anthropic.Anthropic) -> None:
    message = api.messages.create(
        model=MODEL,
        messages=USER,
        max_tokens=8,
        system=[{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}],
        metadata={"user_id": "someone"},
        thinking={"type": "disabled"},
        tools=[{"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}}],
        tool_choice={"type": "none"},
        extra_body={"temperature": 1, "top_k": 20, "seed": 1, "ignore_eos": True},
    )
    (block,) = message.content
    assert block.type == "text" and len(block.text) == 8
    assert (message.role, message.stop_reason, message.usage.output_tokens) == ("assistant", "max_tokens", 8)
    assert message._request_id


def test_a_stream_of_events(api: anthropic.Anthropic) -> None:
    whole = api.messages.create(model=MODEL, messages=USER, max_tokens=8, extra_body=BODY)
    events = list(api.messages.create(model=MODEL, messages=USER, max_tokens=8, extra_body=BODY, stream=True))
    pieces = [event.delta for event in events if event.type == "content_block_delta"]
    (block,) = whole.content
    assert block.type == "text"
    assert "".join(piece.text for piece in pieces if piece.type == "text_delta") == block.text


def test_the_helper_for_streams_puts_them_together(api: anthropic.Anthropic) -> None:
    whole = api.messages.create(model=MODEL, messages=USER, max_tokens=8, extra_body=BODY)
    with api.messages.stream(model=MODEL, messages=USER, max_tokens=8, extra_body=BODY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    (block,), (expected,) = final.content, whole.content
    assert block.type == expected.type == "text" and text == block.text == expected.text
    assert final.usage == whole.usage and final.stop_reason == whole.stop_reason


def test_a_stop_sequence_is_told(api: anthropic.Anthropic) -> None:
    (block,) = api.messages.create(model=MODEL, messages=USER, max_tokens=8, extra_body=BODY).content
    assert block.type == "text"
    stop = block.text[5]
    message = api.messages.create(model=MODEL, messages=USER, max_tokens=8, stop_sequences=[stop], extra_body=BODY)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)


def test_tokens_are_counted(api: anthropic.Anthropic) -> None:
    counted = api.messages.count_tokens(model=MODEL, messages=USER, system="AB")
    message = api.messages.create(model=MODEL, messages=USER, system="AB", max_tokens=1)
    assert counted.input_tokens == message.usage.input_tokens == len("SAB;UHELL1;=>")


def test_errors_have_their_classes_and_attributes(api: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="does not exist") as missing:
        api.messages.create(model="other", messages=USER, max_tokens=1)
    assert missing.value.type == "not_found_error" and missing.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long") as long:
        api.messages.create(model=MODEL, messages=[{"role": "user", "content": "A" * 2000}], max_tokens=1)
    assert long.value.type == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        api.messages.create(model=MODEL, messages=USER, max_tokens=0)


def test_the_key_is_taken_as_the_client_sends_it() -> None:
    with serving(api_key="secret") as server:
        with anthropic_of(server, "secret") as api:
            assert api.messages.create(model=MODEL, messages=USER, max_tokens=1).content
        with anthropic_of(server, "other") as api, pytest.raises(anthropic.AuthenticationError) as wrong:
            api.messages.create(model=MODEL, messages=USER, max_tokens=1)
        assert wrong.value.type == "authentication_error"
        server.service.begin_draining()
        with anthropic_of(server, "secret") as api, pytest.raises(anthropic.ServiceUnavailableError) as ending:
            api.messages.create(model=MODEL, messages=USER, max_tokens=1)
        assert ending.value.type == "overloaded_error"


def test_an_error_in_mid_stream_is_raised(api: anthropic.Anthropic, server: LiveServer) -> None:
    with api.messages.stream(model=MODEL, messages=USER, max_tokens=4, extra_body=BODY) as stream:
        text = stream.get_final_text()
    model_of(server).nan_after = ord(text[1]) - ord("0")
    try:
        events = api.messages.create(model=MODEL, messages=USER, max_tokens=4, extra_body=BODY, stream=True)
        with pytest.raises(anthropic.APIStatusError, match="failed in the engine") as failure:
            list(events)
        assert failure.value.type == "api_error"
    finally:
        model_of(server).nan_after = None
