"""Chat completions, whole and streamed."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import httpx
import pytest
from fake_model import IMAGE, IMAGE_TOKENS, greedy_text, text_of
from PIL import Image
from serving import ALIAS, MODEL, ChatTokenizer, LiveServer, chat_pipeline, serving, stream

PATH = "/v1/chat/completions"
USER = [{"role": "user", "content": "HELL1"}]
BODY: dict[str, Any] = {"model": MODEL, "messages": USER, "max_tokens": 12, "ignore_eos": True}


def tokens_of(text: str) -> list[int]:
    return ChatTokenizer().encode(text)


def greedy(prompt: str, num_new: int = 12) -> str:
    return text_of(greedy_text(tokens_of(prompt), num_new, True))


def ask(client: httpx.Client, **body: Any) -> Any:
    response = client.post(PATH, json={**BODY, **body})
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: httpx.Client, status: int = 400, **body: Any) -> Any:
    response = client.post(PATH, json={**BODY, **body})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def text(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_an_answer_has_every_key_that_clients_need(client: httpx.Client) -> None:
    answer = ask(client)
    prompt = "UHELL1;=>"
    assert answer.pop("id").startswith("chatcmpl-") and isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": greedy(prompt), "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": 12,
            "total_tokens": len(prompt) + 12,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_a_stream_gives_the_same_text_in_the_shapes_that_clients_need(client: httpx.Client) -> None:
    chunks = stream(client, PATH, **BODY, stream_options={"include_usage": True})
    *parts, usage = chunks
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {
        (chunks[0]["id"], "chat.completion.chunk", MODEL)
    }
    assert all(chunk["usage"] is None for chunk in parts)
    assert usage["choices"] == [] and usage["usage"] == ask(client)["usage"]
    choices = [choice for chunk in parts for choice in chunk["choices"]]
    assert {choice["index"] for choice in choices} == {0}
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(choice["delta"]) <= {"content"} for choice in choices[1:])
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == text(ask(client))


def test_usage_in_a_stream(client: httpx.Client) -> None:
    assert all("usage" not in chunk for chunk in stream(client, PATH, **BODY))
    chunks = stream(client, PATH, **BODY, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 12


def test_several_choices_differ_by_their_seeds_and_are_told_apart_by_index(client: httpx.Client) -> None:
    body = {"n": 3, "temperature": 1.5, "seed": -7}
    answer = ask(client, **body)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2] and len(set(texts)) == 3
    assert answer["usage"]["completion_tokens"] == 36 and answer["usage"]["prompt_tokens"] == 9
    streamed = ["", "", ""]
    finished = []
    for chunk in stream(client, PATH, **{**BODY, **body}):
        (choice,) = chunk["choices"]
        streamed[choice["index"]] += choice["delta"].get("content", "")
        finished += [choice["index"]] * (choice["finish_reason"] is not None)
    assert streamed == texts and sorted(finished) == [0, 1, 2]


def test_the_stop_string_that_matched_is_told(client: httpx.Client) -> None:
    whole = text(ask(client))
    stop = whole[5:7]
    for stops in (stop, [stop, "!!"]):
        choice = ask(client, stop=stops)["choices"][0]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
        assert choice["message"]["content"] == whole[: whole.index(stop)]
    last = stream(client, PATH, **BODY, stop=stop)[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)


def test_a_stop_token_is_told_and_the_end_of_text_is_not(client: httpx.Client) -> None:
    token = tokens_of(text(ask(client)))[4]
    choice = ask(client, stop_token_ids=[token])["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", token)
    choice = ask(client, ignore_eos=False, logit_bias={"0": 100})["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"], choice["message"]["content"]) == ("stop", None, "")


def test_max_completion_tokens_wins_over_max_tokens(client: httpx.Client) -> None:
    assert ask(client, max_completion_tokens=3)["usage"]["completion_tokens"] == 3
    without = {name: value for name, value in BODY.items() if name != "max_tokens"}
    answer = client.post(PATH, json=without).json()
    assert answer["usage"]["total_tokens"] == 1000  # the model's limit


def test_log_probabilities(client: httpx.Client) -> None:
    content = ask(client, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == list(greedy("UHELL1;=>"))
    for entry in content:
        assert entry["bytes"] == list(entry["token"].encode())
        assert len(entry["top_logprobs"]) == 2 and entry["top_logprobs"][0]["token"] == entry["token"]
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] < 0
        assert math.isfinite(entry["logprob"])
    streamed = stream(client, PATH, **BODY, logprobs=True, top_logprobs=2)
    logprobs = [choice["logprobs"] for chunk in streamed for choice in chunk["choices"]]
    assert [entry for each in logprobs if each for entry in each["content"]] == content
    assert ask(client, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert refused(client, top_logprobs=2)["param"] == "top_logprobs"


def test_null_is_as_good_as_absent(client: httpx.Client) -> None:
    from pipelines.serve.chat.fields import ChatRequest

    nulls = {name: None for name in ChatRequest.model_fields if name not in BODY} | {"unknown": None}
    assert text(ask(client, **nulls)) == text(ask(client))
    message = {"role": "user", "content": "HELL1", "name": None, "tool_calls": None}
    assert text(ask(client, messages=[message])) == text(ask(client))


def test_unknown_fields_are_accepted_everywhere(client: httpx.Client) -> None:
    parts = [{"type": "text", "text": "HELL1", "unknown": 1}]
    answer = ask(
        client,
        messages=[{"role": "user", "content": parts, "unknown": {"a": 1}}],
        unknown=[1],
        stream_options={"unknown": 1},
        user="someone",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        verbosity="low",
        reasoning_effort="low",
        parallel_tool_calls=True,
        prompt_cache_key="key",
        safety_identifier="id",
        response_format={"type": "text"},
        tools=[],
        tool_choice="none",
    )
    assert text(answer) == text(ask(client))


def test_roles_and_parts_become_what_templates_know(client: httpx.Client) -> None:
    messages = [
        {"role": "developer", "content": "A"},
        {"role": "system", "content": [{"type": "text", "text": "B"}]},
        {"role": "user", "content": [{"type": "text", "text": "C"}, {"type": "input_text", "text": "D"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    with serving() as server, server.client() as own:
        assert isinstance(server.pipe.tokenizer, ChatTokenizer)
        ask(own, messages=messages)
        assert server.pipe.tokenizer.rendered == ["SA\n\nB;UC\nD;A;=>"]


def test_template_variables_reach_the_template_but_nothing_else(client: httpx.Client) -> None:
    assert text(ask(client, chat_template_kwargs={"end": "=="})) == greedy("UHELL1;==")
    assert text(ask(client, add_generation_prompt=False)) == greedy("UHELL1;")
    for name in ("allow_control_tokens", "messages", "images", "guard", "tools"):
        assert refused(client, chat_template_kwargs={name: True})["param"] == "chat_template_kwargs"
    assert "refuses" in refused(client, chat_template_kwargs={"refuse": True})["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 10_000}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e99}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_logprobs": 1000, "logprobs": True}, "top_logprobs"),
        ({"seed": 2**70}, "seed"),
        ({"min_tokens": 20}, "min_tokens"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"logit_bias": {"foo": 0}}, "logit_bias"),
        ({"logit_bias": {"64": 0}}, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, "logit_bias"),
        ({"stop_token_ids": [64]}, "stop_token_ids"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "A"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
    ],
)
def test_what_cant_be_served_is_a_400_that_names_the_field(
    client: httpx.Client, body: dict[str, Any], param: str
) -> None:
    error = refused(client, **body)
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param), error


def test_a_prompt_that_is_too_long_is_refused_in_words_that_clients_know(client: httpx.Client) -> None:
    error = refused(client, messages=[{"role": "user", "content": "A" * 5000}])
    assert error["code"] == "context_length_exceeded"
    assert "this model's maximum context length is 1000 tokens" in error["message"].lower()


def test_models_have_names_and_aliases(client: httpx.Client) -> None:
    assert ask(client, model=ALIAS)["model"] == ALIAS
    without = {name: value for name, value in BODY.items() if name != "model"}
    assert client.post(PATH, json=without).json()["model"] == MODEL
    error = refused(client, 404, model="other")
    assert (error["code"], error["param"]) == ("model_not_found", "model")


def picture(width: int) -> str:
    data = io.BytesIO()
    Image.new("RGB", (width, 4)).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def with_image(url: Any) -> list[Any]:
    parts = [{"type": "text", "text": "A"}, {"type": "image_url", "image_url": url}, {"type": "text", "text": "B"}]
    return [{"role": "user", "content": parts}]


def test_images_come_as_data_uris(client: httpx.Client) -> None:
    answer = ask(client, messages=with_image({"url": picture(4), "detail": "low"}))
    tokens = [*tokens_of("UA"), *[IMAGE] * IMAGE_TOKENS, *tokens_of("B;=>")]
    assert answer["usage"]["prompt_tokens"] == len(tokens)
    assert text(answer) == text_of(greedy_text(tokens, 12, True))


@pytest.mark.parametrize(
    "url",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1/a.png",
        "https://example.com/a.png",
        "data:image/png;base64,????",
        "data:text/plain,hello",
        {"url": 1},
        None,
    ],
)
def test_other_images_are_refused(client: httpx.Client, url: Any) -> None:
    refused(client, messages=with_image(url))


def test_images_from_allowed_hosts_go_through_the_checks_of_addresses() -> None:
    with serving(allowed_image_hosts=("localhost",)) as server, server.client() as client:
        error = refused(client, messages=with_image("http://localhost:1/a.png"))
        assert "not a public one" in error["message"]
        assert "not allowed" in refused(client, messages=with_image("http://127.0.0.1/a.png"))["message"]


def test_a_model_that_takes_text_alone_says_so() -> None:
    with serving(chat_pipeline(takes_images=False)) as server, server.client() as client:
        assert "text alone" in refused(client, messages=with_image(picture(4)))["message"]


def test_the_prefix_of_an_earlier_turn_is_reused_and_told() -> None:
    messages = [{"role": "user", "content": "ABCDEFGH" * 40}]
    with serving(chat_pipeline(enable_prefix_caching=True)) as server, server.client() as client:
        first = ask(client, messages=messages)
        second = ask(client, messages=messages)
    assert text(first) == text(second)
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["usage"]["prompt_tokens_details"] == {"cached_tokens": 256}


def test_a_salt_keeps_prefixes_apart(server: LiveServer, client: httpx.Client) -> None:
    assert text(ask(client, cache_salt="A")) == text(ask(client))
