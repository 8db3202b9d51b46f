"""Streams byte by byte, and clients that read slowly or never."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
from fake_model import assert_idle
from pydantic import BaseModel
from serving import LiveServer, chat_pipeline, eventually, serving

from pipelines.serve.wire import to_json


def request(path: str, **body: Any) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"0\r\n\r\n") and (piece := connection.recv(65536)):
        data += piece
    return data


def without_chunks(data: bytes) -> bytes:
    """The body of an answer with chunked transfer encoding."""
    rest, body = data.partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


def test_the_frames_of_a_stream(server: LiveServer) -> None:
    with socket.create_connection(server.address) as connection:
        messages = [{"role": "user", "content": "A"}]
        connection.sendall(request("/v1/chat/completions", messages=messages, max_tokens=3, stream=True))
        data = read_all(connection)
    head = data.partition(b"\r\n\r\n")[0].lower()
    assert b"content-type: text/event-stream" in head and b"cache-control: no-cache" in head
    assert b"content-length" not in head
    body = without_chunks(data)
    assert b"\r" not in body and body.endswith(b"\n\ndata: [DONE]\n\n")
    *events, done, empty = body.split(b"\n\n")
    assert (done, empty) == (b"data: [DONE]", b"")
    assert all(event.startswith(b'data: {"') and b"\n" not in event for event in events)


def test_no_character_of_a_text_ends_a_line() -> None:
    class Text(BaseModel):
        text: str

    text = "".join(map(chr, [*range(0x20), 0x85, 0x2028, 0x2029, 0x1F600, *range(0xE0, 0x100)]))
    encoded = to_json(Text(text=text))
    assert len(encoded.splitlines()) == 1 and json.loads(encoded) == {"text": text}


def wait_for(server: LiveServer, num_admitted: int) -> None:
    eventually(lambda: server.service.num_admitted == num_admitted)


def test_a_client_that_leaves_while_its_request_waits_frees_its_place() -> None:
    body = {"prompt": "A" * 30, "max_tokens": 900, "ignore_eos": True}
    with serving(chat_pipeline(max_batch_size=1)) as server:
        server.pipe.model.during_step = lambda: time.sleep(0.01)  # type: ignore[attr-defined]
        connections = [socket.create_connection(server.address) for _ in range(4)]
        for i, connection in enumerate(connections):
            connection.sendall(request("/v1/completions", stream=i % 2 == 0, **body))
        wait_for(server, 4)
        for num_left, connection in zip((3, 2, 1, 0), connections[::-1], strict=True):
            connection.close()
            wait_for(server, num_left)
    assert_idle(server.pipe)


@pytest.mark.slow
def test_a_client_that_reads_nothing_keeps_no_page_and_is_cut() -> None:
    body = {"prompt": [1], "max_tokens": 900, "ignore_eos": True, "n": 32, "stream": True}
    with serving(send_timeout_s=0.5) as server, socket.socket() as slow, server.client() as client:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(server.address)
        slow.sendall(request("/v1/completions", **body, logprobs=20))
        eventually(lambda: server.service.num_admitted > 0)
        assert client.post("/v1/completions", json={"prompt": "A"}).status_code == 200
        wait_for(server, 0)
        server.begin_shutdown()  # does not wait for it
        server.wait()
    assert_idle(server.pipe)
