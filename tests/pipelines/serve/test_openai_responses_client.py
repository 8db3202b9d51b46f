"""The openai package's Responses, with strict validation of what it gets."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from api_clients import openai_of
from openai.types.responses import FunctionToolParam
from serving import MODEL, LiveServer, model_of

MODEL_FIELDS = {"ignore_eos": True}
TOOL: FunctionToolParam = {
    "type": "function",
    "name": "f",
    "description": "d",
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    "strict": False,
}


@pytest.fixture(scope="module")
def api(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai_of(server) as api:
        yield api


def test_a_response(api: openai.OpenAI) -> None:
    response = api.responses.create(
        model=MODEL,
        input="HELL1",
        instructions="A",
        max_output_tokens=8,
        temperature=1,
        top_p=0.9,
        include=["message.output_text.logprobs"],
        top_logprobs=3,
        metadata={"a": "b"},
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "text"}, "verbosity": "low"},
        tools=[TOOL],
        tool_choice="none",
        truncation="disabled",
        store=False,
        extra_body={"seed": 1, "top_k": 20, "ignore_eos": True},
    )
    assert response.status == "incomplete" and response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert len(response.output_text) == 8 and response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + 8
    assert response.metadata == {"a": "b"} and response.temperature == 1 and response.top_p == 0.9
    assert response._request_id


def test_a_stream_of_events(api: openai.OpenAI) -> None:
    whole = api.responses.create(model=MODEL, input="HELL1", max_output_tokens=8, extra_body=MODEL_FIELDS)
    events = list(
        api.responses.create(model=MODEL, input="HELL1", max_output_tokens=8, extra_body=MODEL_FIELDS, stream=True)
    )
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    last = events[-1]
    assert last.type == "response.incomplete" and last.response.output_text == text
    assert last.response.usage == whole.usage


def test_the_helper_for_streams_puts_them_together(api: openai.OpenAI) -> None:
    text = api.responses.create(model=MODEL, input="HELL1", max_output_tokens=8, extra_body=MODEL_FIELDS).output_text
    body = {"stop": text[5], "ignore_eos": True}
    with api.responses.stream(model=MODEL, input="HELL1", extra_body=body) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == text[: text.index(text[5])]
    assert final.status == "completed" and final.error is None


def test_a_conversation_goes_on_with_the_output_as_input(api: openai.OpenAI) -> None:
    first = api.responses.create(model=MODEL, input="HELL1", max_output_tokens=4, extra_body=MODEL_FIELDS)
    answer = [item.model_dump() for item in first.output]
    items = [{"role": "user", "content": "HELL1"}, *answer, {"role": "user", "content": "B"}]
    second = api.responses.create(model=MODEL, input=items, max_output_tokens=4)  # type: ignore[arg-type]
    assert first.usage is not None and second.usage is not None
    num_tokens_of_turns = len("A;UB;=>") - len("=>")
    assert second.usage.input_tokens == first.usage.input_tokens + len(first.output_text) + num_tokens_of_turns


def test_what_is_not_stored_is_not_found(api: openai.OpenAI) -> None:
    for call in (api.responses.retrieve, api.responses.delete, api.responses.cancel):
        with pytest.raises(openai.NotFoundError, match="stateless") as missing:
            call("resp_1")
        assert missing.value.code == "response_not_stored"
    with pytest.raises(openai.BadRequestError) as refused:
        api.responses.create(model=MODEL, input="A", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"


def test_an_error_in_mid_stream_is_raised(api: openai.OpenAI, server: LiveServer) -> None:
    stream = api.responses.create(model=MODEL, input="HELL1", stream=True, max_output_tokens=4, extra_body=MODEL_FIELDS)
    text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    model_of(server).nan_after = ord(text[1]) - ord("0")
    try:
        events = api.responses.create(
            model=MODEL, input="HELL1", stream=True, max_output_tokens=4, extra_body=MODEL_FIELDS
        )
        with pytest.raises(openai.APIError, match="failed in the engine"):
            list(events)
    finally:
        model_of(server).nan_after = None
