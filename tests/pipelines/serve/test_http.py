"""What holds of every route: the shape of errors, ids, keys, limits of bodies, the description of the API."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

import httpx
import pytest
from serving import ALIAS, MODEL, LiveServer, chat_pipeline, eventually, serving

from pipelines import InputError
from pipelines.serve.json_route import MAX_VALUES
from pipelines.serve.runner import reserve_port
from pipelines.serve.settings import ServeSettings

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def error_of(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", CHAT, 405), ("DELETE", "/v1/models", 405), ("GET", "/v1/models/other", 404)],
)
def test_unknown_routes_and_methods(client: httpx.Client, method: str, path: str, status: int) -> None:
    error_of(client.request(method, path), status)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", None),
        (b"{", "invalid_json"),
        (b"[]", None),
        (b'"text"', None),
        (b"\xff\xfe{}", "invalid_json"),
        (b'{"messages": "\xc3"}', "invalid_json"),
        (b'{"messages": "\\ud800"}', "invalid_json"),
        (b'{"temperature": NaN}', "invalid_json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b"[" * 2**20, "body_too_complex"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "body_too_complex"),
        (b"[" + b"1," * (MAX_VALUES + 1) + b"1]", "body_too_complex"),
    ],
    ids=range(12),
)
def test_bodies_that_are_no_json(client: httpx.Client, body: bytes, code: str | None) -> None:
    error = error_of(client.post(CHAT, content=body, headers=JSON), 400)
    assert code is None or error["code"] == code


def test_a_body_of_another_type_says_what_is_wanted(client: httpx.Client) -> None:
    body = b'{"model": "fake/model", "messages": [{"role": "user", "content": "A"}], "max_tokens": 1}'
    assert client.post(CHAT, content=body).status_code == 200  # no type at all
    error = error_of(client.post(CHAT, content=body, headers={"Content-Type": "text/plain"}), 400)
    assert "application/json" in error["message"]


def test_bodies_have_a_limit_however_they_are_sent() -> None:
    with serving(max_request_bytes=2000) as server, server.client() as client:
        large = b'{"messages": "' + b"A" * 3000 + b'"}'
        assert error_of(client.post(CHAT, content=large, headers=JSON), 413)["code"] == "request_too_large"
        chunks = (large[i : i + 500] for i in range(0, len(large), 500))
        assert error_of(client.post(CHAT, content=chunks, headers=JSON), 413)["code"] == "request_too_large"
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(("key", "status"), [("right", 413), ("wrong", 401)])
def test_a_client_that_sends_megabytes_before_it_reads_sees_why_they_are_refused(key: str, status: int) -> None:
    """Otherwise the connection would be reset under it, and the answer be lost."""
    with serving(max_request_bytes=2000, api_key="right") as server, server.client() as client:
        for _ in range(3):
            headers = {**JSON, "Authorization": f"Bearer {key}"}
            error_of(client.post(CHAT, content=b"A" * 16 * 2**20, headers=headers), status)


def test_a_body_that_never_ends_is_cut() -> None:
    with serving(body_timeout_s=0.2) as server, socket.create_connection(server.address) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_headers_that_never_end_are_cut() -> None:
    with serving(header_timeout_s=0.2) as server:
        for begin in (b"", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A:"):
            with socket.create_connection(server.address) as connection:
                connection.sendall(begin)
                connection.settimeout(30)
                with suppress(ConnectionResetError):
                    assert connection.recv(1000) == b""


def test_request_ids_are_echoed_or_made(client: httpx.Client) -> None:
    assert client.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert client.get("/nothing", headers={"X-Request-Id": "mine-2"}).headers["x-request-id"] == "mine-2"
    made = {client.get("/health", headers={"X-Request-Id": given}).headers["x-request-id"] for given in ("", "a b")}
    assert len(made) == 2 and "a b" not in made
    body = {"prompt": "A", "stream": True, "max_tokens": 1}
    assert client.post("/v1/completions", json=body, headers={"X-Request-Id": "s"}).headers["x-request-id"] == "s"


def test_a_key_protects_all_but_health() -> None:
    with serving(api_key="secret") as server, server.client() as client:
        for path in ("/health", "/ready"):
            assert client.get(path).status_code == 200
        paths = ["/v1/models", "/version", "/openapi.json", "/nothing", f"{server.url}//health", "/health/"]
        for path in paths:
            assert error_of(client.get(path), 401)["type"] == "authentication_error"
        for wrong in ("Bearer", "Bearer wrong", "secret", "Basic secret"):
            error_of(client.get("/v1/models", headers=[("Authorization", wrong)]), 401)
        error_of(client.post(CHAT, json={}), 401)
        assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/v1/models", headers={"x-api-key": "secret"}).status_code == 200


def test_other_origins_are_let_in_where_they_are_named() -> None:
    asked = {"Origin": "http://a", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
    with serving(cors_origins=("http://a",), api_key="secret") as server, server.client() as client:
        assert client.options(CHAT, headers=asked).headers["access-control-allow-origin"] == "http://a"
        refused = client.get("/v1/models", headers={"Origin": "http://a"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "http://a"
        assert "access-control-allow-origin" not in client.get("/health", headers={"Origin": "http://b"}).headers


def test_no_origin_is_let_in_otherwise(client: httpx.Client) -> None:
    assert "access-control-allow-origin" not in client.get("/health", headers={"Origin": "http://a"}).headers


def test_models_are_listed_and_described(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == [MODEL, ALIAS]
    assert listed["data"][0].items() >= {"object": "model", "max_model_len": 1000}.items()
    for model in listed["data"]:
        assert client.get(f"/v1/models/{model['id']}").json() == model
    assert client.get("/version").json()["version"]


def test_the_description_of_the_api_is_true(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/ready"} <= document["paths"].keys()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert {"200", "4XX", "5XX"} == operation["responses"].keys(), path
    streamed = document["paths"][CHAT]["post"]["responses"]["200"]["content"]
    assert streamed.keys() == {"application/json", "text/event-stream"}
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    assert {"messages", "n", "stop", "logit_bias"} <= schemas["ChatRequest"]["properties"].keys()


def test_a_defect_is_an_error_of_the_right_shape(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("secret of a user")

    with server.client() as client:
        monkeypatch.setattr(server.service, "submit", broken)
        error = error_of(client.post("/v1/completions", json={"prompt": "A"}), 500)
        assert error["type"] == "server_error" and "secret" not in error["message"]


def test_while_it_loads_it_says_so() -> None:
    server = LiveServer(chat_pipeline())
    with server.client() as client:
        assert client.get("/health").json() == {"status": "loading"}
        for response in (client.get("/ready"), client.post("/v1/completions", json={"prompt": "A"})):
            assert error_of(response, 503)["type"] == "service_unavailable_error" and response.headers["retry-after"]
        assert client.get("/v1/models").json()["data"][0]["id"] == MODEL
        server.may_load.set()
        eventually(lambda: client.get("/ready").status_code == 200)
        assert client.post("/v1/completions", json={"prompt": "A"}).status_code == 200
    server.begin_shutdown()
    server.wait()


def test_a_busy_port_is_found_at_once() -> None:
    with reserve_port("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}.*choose another"):
            reserve_port("127.0.0.1", port)
    with pytest.raises(InputError, match="--host"):
        reserve_port("no.such.host.invalid", 1)


@pytest.mark.parametrize(
    "wrong",
    [{"port": 70_000}, {"max_queue_size": -1}, {"api_key": ""}, {"api_key": "a\nb"}, {"served_model_names": ()}],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ServeSettings(**wrong)


def test_requests_have_a_line_in_the_log_without_their_text(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "pipelines"):
        client.post("/v1/completions", json={"prompt": "SECRET"}, headers={"X-Request-Id": "logged"})
        (record,) = eventually(lambda: [each for each in caplog.records if each.name == "pipelines.serve.access"])
    assert record.getMessage().startswith("POST '/v1/completions' 200 ") and record.getMessage().endswith(" logged")
    assert record.__dict__["status"] == 200 and "SECRET" not in caplog.text


def test_a_million_messages_are_refused_at_once(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "A"}] * 20_000
    error = error_of(client.post(CHAT, json={"messages": messages}), 400)
    assert error["param"] == "messages"
