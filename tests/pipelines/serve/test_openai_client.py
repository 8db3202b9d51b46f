"""The openai package, with strict validation of what it gets."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from serving import MODEL, LiveServer

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "HELL1"}]


@pytest.fixture(scope="module")
def api(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as api:
        yield api


@pytest.fixture(scope="module")
def lax(server: LiveServer) -> Iterator[openai.OpenAI]:
    """Without validation: the types of text completions know no null, as streams and echoes have it."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as api:
        yield api


def test_models(api: openai.OpenAI) -> None:
    assert next(iter(api.models.list())).id == MODEL
    assert api.models.retrieve(MODEL).owned_by == "graph-pipelines"


def test_chat(api: openai.OpenAI) -> None:
    answer = api.chat.completions.create(
        model=MODEL, messages=USER, max_completion_tokens=8, n=2, logprobs=True, top_logprobs=3, seed=1, temperature=1
    )
    assert len(answer.choices) == 2 and answer.usage is not None
    for choice in answer.choices:
        assert choice.message.role == "assistant" and choice.logprobs is not None
    assert answer._request_id


def test_chat_streams(api: openai.OpenAI) -> None:
    whole = api.chat.completions.create(model=MODEL, messages=USER, max_tokens=8)
    chunks = api.chat.completions.create(
        model=MODEL, messages=USER, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    received = list(chunks)
    text = "".join(choice.delta.content or "" for chunk in received for choice in chunk.choices)
    assert text == whole.choices[0].message.content and received[-1].usage == whole.usage


def test_the_helper_for_streams_puts_them_together(api: openai.OpenAI) -> None:
    text = api.chat.completions.create(model=MODEL, messages=USER, max_tokens=8).choices[0].message.content
    assert text is not None
    stop = text[5]  # an answer that is cut by its length is an error to this helper
    with api.chat.completions.stream(model=MODEL, messages=USER, stop=stop, n=2, logprobs=True) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    whole = api.chat.completions.create(model=MODEL, messages=USER, stop=stop, n=2)
    assert [c.message.content for c in final.choices] == [c.message.content for c in whole.choices]
    assert "content.delta" in events and "content.done" in events


def test_completions(api: openai.OpenAI, lax: openai.OpenAI) -> None:
    answer = api.completions.create(model=MODEL, prompt=["AB", "CD"], max_tokens=4, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert (
        lax.completions.create(model=MODEL, prompt="AB", max_tokens=4, logprobs=2, echo=True).choices[0].text[:2]
        == "AB"
    )
    chunks = list(lax.completions.create(model=MODEL, prompt="AB", max_tokens=4, stream=True, logprobs=1))
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_errors_have_their_classes_and_attributes(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        api.chat.completions.create(model="other", messages=USER)
    assert (missing.value.code, missing.value.param, missing.value.type) == (
        "model_not_found",
        "model",
        "not_found_error",
    )
    with pytest.raises(openai.BadRequestError) as long:
        api.completions.create(model=MODEL, prompt="A" * 2000)
    assert long.value.code == "context_length_exceeded"


def test_an_error_in_mid_stream_is_raised(api: openai.OpenAI, server: LiveServer) -> None:
    server.pipe.model.nan_after = 7  # type: ignore[attr-defined]
    try:
        chunks = api.completions.create(model=MODEL, prompt=[1, 2, 7], max_tokens=4, stream=True)
        with pytest.raises(openai.APIError, match="failed in the engine"):
            list(chunks)
    finally:
        server.pipe.model.nan_after = None  # type: ignore[attr-defined]
