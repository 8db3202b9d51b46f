"""A server that answers with given bytes, for clients that must cope with what servers do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

Body = dict[str, Any]
Answer = tuple[int, str, Iterable[bytes]]
"""Status, content type, and the chunks of the body; without a last b"" the connection is closed before its end."""

STREAM = "text/event-stream"


def as_json(body: Any, status: int = 200) -> Answer:
    return status, "application/json", [json.dumps(body).encode(), b""]


def event(body: Any) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def chunk(text: str = "", finish_reason: str | None = None, **more: Any) -> bytes:
    """An event of a streamed completion."""
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}], **more})


def usage(num_prompt_tokens: int, num_output_tokens: int) -> bytes:
    """The last event of a stream but [DONE]."""
    return event({"choices": [], "usage": {"prompt_tokens": num_prompt_tokens, "completion_tokens": num_output_tokens}})


DONE = b"data: [DONE]\n\n"


class StubServer:
    """routes: answers by path; a path that is not there gets a 404. requests: the bodies that came, by path."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.routes: dict[str, Callable[[Body], Answer]] = {"/v1/models": lambda _: as_json({"data": [{"id": "stub"}]})}
        self.requests: list[tuple[str, Body]] = []
        self.headers: list[dict[str, str]] = []

    def bodies(self, path: str) -> list[Body]:
        return [body for at, body in self.requests if at == path]


@contextmanager
def stub_server() -> Iterator[StubServer]:
    """A server on a port of its own, until the block ends."""

    class Handler(_Handler):
        pass

    http_server = _Server(("127.0.0.1", 0), Handler)
    Handler.stub = StubServer(f"http://127.0.0.1:{http_server.server_port}")
    thread = threading.Thread(target=lambda: http_server.serve_forever(poll_interval=0.01))
    thread.start()
    try:
        yield Handler.stub
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client may leave at any time."""


class _Handler(BaseHTTPRequestHandler):
    stub: ClassVar[StubServer]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body: Body) -> None:
        self.stub.requests.append((self.path, body))
        self.stub.headers.append(dict(self.headers))
        route = self.stub.routes.get(self.path)
        status, content_type, chunks = route(body) if route else as_json({"detail": "Not Found"}, 404)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        for data in chunks:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.close_connection = bool(data)

    def log_message(self, *_: Any) -> None:
        pass
