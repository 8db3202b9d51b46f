"""Anthropic's Messages API over HTTP: what its requests may have, what it refuses, and the shape of its errors."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import pytest
from fake_model import IMAGE, IMAGE_TOKENS, greedy_text, text_of
from messages_api import BODY, PATH, USER, ask, greedy, refused, text
from PIL import Image
from serving import ChatTokenizer, LiveServer, chat_pipeline, serving

from pipelines.serve.anthropic.fields import MessagesRequest

pytestmark = pytest.mark.slow  # together they take seconds


def rendered(server: LiveServer) -> str:
    tokenizer = server.pipe.prompts.tokenizer
    assert isinstance(tokenizer, ChatTokenizer)
    return tokenizer.rendered[-1]


def test_conversations_become_chats(server: LiveServer, client: httpx.Client) -> None:
    ask(client, system="A", messages=[{"role": "user", "content": "B"}])
    assert rendered(server) == "SA;UB;=>"
    blocks = [{"type": "text", "text": part, "cache_control": {"type": "ephemeral"}} for part in "AB"]
    messages = [
        {"role": "user", "content": blocks},
        {"role": "user", "content": "C"},
        {"role": "assistant", "content": [{"type": "text", "text": "D"}]},
        {"role": "system", "content": "E"},
        {"role": "user", "content": "F"},
    ]
    ask(client, system=blocks, messages=messages)
    assert rendered(server) == "SA\nB;UA\nB\nC;AD;SE;UF;=>"


def test_an_answer_that_has_begun_is_continued(server: LiveServer, client: httpx.Client) -> None:
    ask(client, messages=[*USER, {"role": "assistant", "content": "A"}])
    assert rendered(server) == "UHELL1;AA;"  # and no start of another answer


def test_the_line_with_which_an_agent_defeats_the_cache_is_left_out(server: LiveServer, client: httpx.Client) -> None:
    line = "x-anthropic-billing-header: cc_version=2; cch=1a2b3;"
    for system in ([{"type": "text", "text": line}, {"type": "text", "text": "A"}], f"{line}\nA"):
        ask(client, system=system)
        assert rendered(server) == "SA;UHELL1;=>"


@pytest.mark.parametrize("path", [PATH, f"{PATH}/count_tokens"])
def test_null_is_as_good_as_absent(client: httpx.Client, path: str) -> None:
    nulls = {name: None for name in MessagesRequest.model_fields if name not in BODY} | {"unknown": None}
    block = {"type": "text", "text": "HELL1", "cache_control": None, "citations": None}
    config = {"output_config": {"format": None, "effort": None}}
    for more in (nulls, config, {"messages": [{"role": "user", "content": [block]}]}):
        plain, given = client.post(path, json=BODY).json(), client.post(path, json={**BODY, **more}).json()
        assert {**given, "id": 0} == {**plain, "id": 0}, more


def test_unknown_fields_are_accepted(client: httpx.Client) -> None:
    unknown = {"unknown": [1], "n": "x", "max_completion_tokens": "x", "context_management": {"edits": []}}
    given = {"metadata": {"user_id": "u"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"}}
    assert text(ask(client, **unknown, **given, container="c", inference_geo="us")) == greedy()


def block(**fields: Any) -> Any:
    return {"messages": [{"role": "user", "content": [fields]}]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "A"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "A"}]}, "messages.0.role"),
        ({"temperature": -1}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": "A"}, "stop_sequences"),
        ({"system": [{"type": "image", "source": {"type": "url", "url": "A"}}]}, "system.0: a block of type 'image'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0: tools of type 'web_search_2025"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "always"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        (block(type="server_tool_use"), "messages.0.content.0: blocks of type 'server_tool_use'"),
        (block(type="text"), "messages.0.content.0.text"),
        (block(type="tool_use", id="a", name="f", input={}), "messages.0.content.0: a block of type 'tool_use'"),
        (block(type="tool_result"), "messages.0.content.0.tool_use_id"),
        (block(type="image"), "messages.0.content.0.source"),
        (block(type="image", source={"type": "file", "file_id": "f"}), "messages.0.content.0.source"),
        (block(type="image", source={"type": "url", "url": "file:///etc/passwd"}), "http(s)"),
        (block(type="document", source={"type": "base64", "data": "A"}), "messages.0.content.0.source"),
        (block(type="document", source={"type": "url", "url": "https://a"}), "messages.0.content.0.source"),
    ],
)
def test_what_cant_be_served_is_a_400_that_names_the_field(
    client: httpx.Client, body: dict[str, Any], words: str
) -> None:
    error = refused(client, **body)
    assert error["type"] == "invalid_request_error" and words in error["message"], error


def test_other_errors_have_their_types(client: httpx.Client) -> None:
    assert refused(client, 404, model="other")["type"] == "not_found_error"
    assert refused(client, 404, path=f"{PATH}/batches")["type"] == "not_found_error"
    assert refused(client, 400, messages=[{"role": "user", "content": "A" * 2000}])["message"].startswith(
        "prompt is too long: "
    )
    for method in ("GET", "DELETE"):
        response = client.request(method, PATH)
        assert (response.status_code, response.json()["error"]["type"]) == (405, "invalid_request_error")
    response = client.post(PATH, content=b"{", headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["type"]) == (400, "error")


def test_errors_before_the_route_have_the_shape_too() -> None:
    with serving(api_key="secret", max_request_bytes=2000) as server, server.client() as client:
        assert refused(client, 401)["type"] == "authentication_error"
        client.headers["x-api-key"] = "secret"
        assert ask(client)["type"] == "message"
        large = [{"role": "user", "content": "A" * 3000}]
        assert refused(client, 413, messages=large)["type"] == "request_too_large"
        client.headers["authorization"] = "Bearer other"  # beside the right key
        assert ask(client)["type"] == "message"
        server.service.begin_draining()
        assert refused(client, 503)["type"] == "overloaded_error"


def test_a_full_queue_and_a_defect_have_the_shape_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(chat_pipeline(max_batch_size=1), max_queue_size=0) as server, server.client() as client:
        monkeypatch.setattr(server.service, "_num_admitted", 1)
        assert refused(client, 429)["type"] == "rate_limit_error"
        monkeypatch.setattr(server.service, "_num_admitted", 0)

        def broken(*_: Any) -> Any:
            raise RuntimeError("secret of a user")

        monkeypatch.setattr(server.service, "submit", broken)
        error = refused(client, 500)
        assert error["type"] == "api_error" and "secret" not in error["message"]


def test_images_come_as_base64(client: httpx.Client) -> None:
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG")
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data.getvalue()).decode()}
    content = [{"type": "text", "text": "A"}, {"type": "image", "source": source}, {"type": "text", "text": "B"}]
    message = ask(client, messages=[{"role": "user", "content": content}])
    encode = ChatTokenizer().encode
    tokens = [*encode("UA"), *[IMAGE] * IMAGE_TOKENS, *encode("B;=>")]
    assert message["usage"]["input_tokens"] == len(tokens)
    assert text(message) == text_of(greedy_text(tokens, 12, True))
    body = {"messages": [{"role": "user", "content": content}]}
    assert client.post(f"{PATH}/count_tokens", json=body).json() == {"input_tokens": len(tokens)}


def test_the_description_of_the_routes_is_true(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for path, answer in ((PATH, "MessageObject"), (f"{PATH}/count_tokens", "TokenCount")):
        responses = document["paths"][path]["post"]["responses"]
        answered = responses["200"]["content"]
        assert answered["application/json"]["schema"]["$ref"].endswith(f"/{answer}")
        assert ("text/event-stream" in answered) == (path == PATH)
        for status in ("4XX", "5XX"):
            schema = responses[status]["content"]["application/json"]["schema"]
            assert schema["$ref"].endswith("/AnthropicErrorResponse")
    schemas = document["components"]["schemas"]
    assert schemas["MessageObject"]["properties"].keys() == ask(client).keys()
    assert "max_tokens" in schemas["MessagesRequest"]["required"]
