"""The Responses API over HTTP: what its requests may have, and what it refuses."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import pytest
from fake_model import IMAGE, IMAGE_TOKENS, greedy_text, text_of
from PIL import Image
from responses_api import BODY, PATH, ask, greedy, refused, text
from serving import ChatTokenizer, LiveServer

from pipelines.serve.responses.fields import ResponsesRequest

pytestmark = pytest.mark.slow  # together they take seconds


def rendered(server: LiveServer) -> str:
    tokenizer = server.pipe.prompts.tokenizer
    assert isinstance(tokenizer, ChatTokenizer)
    return tokenizer.rendered[-1]


def test_conversations_become_chats(server: LiveServer, client: httpx.Client) -> None:
    ask(client, instructions="A", input="B")
    assert rendered(server) == "SA;UB;=>"
    parts = [{"type": "input_text", "text": "C"}, {"type": "input_text", "text": "D"}]
    answer = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant"}
    ask(
        client,
        input=[
            {"role": "developer", "content": "A"},
            {"type": "message", "role": "user", "content": parts},
            {**answer, "content": [{"type": "output_text", "text": "E", "annotations": [], "logprobs": []}]},
            {"role": "user", "content": "F", "unknown": 1},
        ],
    )
    assert rendered(server) == "SA;UC\nD;AE;UF;=>"


def test_null_is_as_good_as_absent(client: httpx.Client) -> None:
    nulls = {name: None for name in ResponsesRequest.model_fields if name not in BODY} | {"unknown": None}
    assert text(ask(client, **nulls)) == greedy()
    item = {"type": None, "role": "user", "content": "HELL1", "call_id": None, "id": None}
    assert text(ask(client, input=[item], text={"format": None}, reasoning={"effort": None})) == greedy()


def test_unknown_fields_are_accepted(client: httpx.Client) -> None:
    unknown = {"unknown": [1], "messages": 5, "n": "x", "documents": 1, "stream_options": {"include_obfuscation": True}}
    given = {"include": ["reasoning.encrypted_content"], "text": {"verbosity": "low"}, "truncation": "disabled"}
    assert text(ask(client, **unknown, **given, background=False, store=True)) == greedy()


def parts(part: Any) -> Any:
    return {"input": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"stop": ""}, "stop"),
        ({"min_tokens": 20}, "min_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": "A"}] * 10_000, "instructions": "A"}, "input"),
        ({"input": ["A"]}, "input.0"),
        ({"input": [{"content": "A"}]}, "input.0.role"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0"),
        ({"input": [{"id": "msg_1"}]}, "input.0"),
        ({"input": [{"type": "computer_call_output", "output": {}}]}, "input.0"),
        ({"input": [{"type": "reasoning", "summary": [], "id": "rs_1"}]}, "input"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input.0.call_id"),
        ({"input": [{"type": "function_call_output", "output": "A"}]}, "input.0.call_id"),
        (parts({"type": "input_text"}), "input.0.content.0.text"),
        (parts({"type": "input_image", "file_id": "f"}), "input.0.content.0.image_url"),
        (parts({"type": "input_image", "image_url": "file:///etc/passwd"}), "input"),
        (parts({"type": "input_file", "file_id": "f"}), "input.0.content.0.type"),
        (parts({"type": 1}), "input.0.content.0.type"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "nothing"}}}, "text.format"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)
def test_what_cant_be_served_is_a_400_that_names_the_field(
    client: httpx.Client, body: dict[str, Any], param: str
) -> None:
    error = refused(client, **body)
    assert error["type"] == "invalid_request_error" and error["param"] == param, error


def test_tools_that_are_no_functions_are_refused_by_their_name(client: httpx.Client) -> None:
    assert "'web_search'" in refused(client, tools=[{"type": "web_search"}])["message"]
    assert "'mcp_call'" in refused(client, input=[{"type": "mcp_call"}])["message"]
    assert "stateless" in client.get(f"{PATH}/resp_1").json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/r"), ("DELETE", "/r"), ("POST", "/r/cancel"), ("GET", "/r/input_items")]
)
def test_no_response_is_stored(client: httpx.Client, method: str, path: str) -> None:
    response = client.request(method, PATH + path)
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "response_not_stored" and "'r'" in error["message"]


def test_names_of_models_and_lengths_are_checked(client: httpx.Client) -> None:
    assert refused(client, 404, model="other")["code"] == "model_not_found"
    assert refused(client, input="A" * 2000)["code"] == "context_length_exceeded"


def test_images_come_as_data_uris(client: httpx.Client) -> None:
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    content = [{"type": "input_text", "text": "A"}, {"type": "input_image", "image_url": url, "detail": "auto"}]
    response = ask(client, input=[{"role": "user", "content": content}])
    tokens = [*ChatTokenizer().encode("UA"), *[IMAGE] * IMAGE_TOKENS, *ChatTokenizer().encode(";=>")]
    assert response["usage"]["input_tokens"] == len(tokens)
    assert text(response) == text_of(greedy_text(tokens, 12, True))


def test_the_description_of_the_route_is_true(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert [path for path in document["paths"] if path.startswith(PATH)] == [PATH]
    assert document["paths"][PATH].keys() == {"post"}
    answered = document["paths"][PATH]["post"]["responses"]["200"]
    assert answered["content"].keys() == {"application/json", "text/event-stream"}
    assert "response.failed" in answered["description"] and "[DONE]" not in answered["description"]
    schemas = document["components"]["schemas"]
    assert schemas["ResponseObject"]["properties"].keys() == ask(client).keys()
    assert schemas["ResponsesRequest"]["required"] == ["input"]
