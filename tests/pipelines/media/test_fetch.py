"""Addresses are fetched from public hosts only, within a time and a size."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpcore
import pytest

import pipelines.media.fetch
from pipelines.errors import InputError
from pipelines.media.fetch import fetch, is_public

pytestmark = pytest.mark.slow  # together they take seconds

PUBLIC = "93.184.216.34"  # nothing here connects to it
OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Server(socketserver.ThreadingTCPServer):
    """Answers with the bytes that a test has given, one piece after the other."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[bytes, ...]] = {}
        self.requests: list[bytes] = []
        self.num_sent = 0  # pieces

    def address(self, *pieces: bytes) -> str:
        path = f"/{len(self.answers)}"
        self.answers[path] = pieces
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        lines = [self.rfile.readline()]
        while lines[-1].strip():
            lines.append(self.rfile.readline())
        self.server.requests.append(b"".join(lines))
        with contextlib.suppress(ConnectionError):
            for piece in self.server.answers[lines[0].split()[1].decode()]:
                self.wfile.write(piece)
                self.server.num_sent += 1
                time.sleep(0.02)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def everything_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.media.fetch, "is_public", lambda address: True)


@pytest.fixture
def resolve_to(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the system resolve names ending in .example to the addresses given for the first look-up, the next, ..."""
    ask_system = socket.getaddrinfo

    def resolve_to(*answers: list[str]) -> None:
        left = list(answers)

        def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
            if not host.endswith(".example"):
                return ask_system(host, port, *args, **kwargs)
            families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in left[0]]
            return [
                (family, socket.SOCK_STREAM, 6, "", (address, port))
                for family, address in zip(families, left.pop(0), strict=True)
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return resolve_to


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def refusal(url: str, *, max_bytes: int = 100, timeout_s: float = 5.0, allow_private: bool = True) -> str:
    with pytest.raises(InputError) as caught:
        fetch(url, max_bytes=max_bytes, timeout_s=timeout_s, allow_private=allow_private)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("can't fetch '")
    return message


@pytest.mark.parametrize(
    "answer",
    [
        HELLO,
        OK + b"\r\nhello",
        OK + b"Content-Encoding: identity\r\n\r\nhello",
        CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + HELLO,
    ],
)
def test_a_private_host_that_is_allowed(server: Server, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    url = server.address(answer)
    assert fetch(url, max_bytes=5, allow_private=True) == b"hello"
    (request,) = server.requests
    assert f"\r\nHost: 127.0.0.1:{server.server_address[1]}\r\n".encode() in request
    assert b"\r\nAccept-Encoding: identity\r\n" in request
    assert b"Cookie" not in request


def test_a_private_host_is_refused(server: Server) -> None:
    message = refusal(server.address(HELLO), allow_private=False)
    assert "its host is not a public one" in message
    assert not server.requests


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost.",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0.0.0.0",
        "169.254.169.254",
        "10.0.0.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "[fd00::1]",
    ],
)
@pytest.mark.parametrize("by_redirect", [False, True])
def test_names_of_private_hosts(server: Server, host: str, by_redirect: bool) -> None:
    url = f"http://{host}:{server.server_address[1]}/0"
    message = refusal(server.address(redirect(url)) if by_redirect else url, allow_private=by_redirect)
    if host != "localhost." or "is not found" not in message:
        assert "its host is not a public one" in message
    assert f"{url}':" in message
    assert len(server.requests) == by_redirect


def test_a_redirect_to_another_path_of_a_private_host(server: Server) -> None:
    message = refusal(server.address(redirect("/0")))
    assert "redirected to '/0': its host is not a public one" in message


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (PUBLIC, True),
        ("2606:2800:220:1::1", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),
        ("2002:5db8:d822::1", True),
        ("127.0.0.1", False),
        ("100.64.0.1", False),
        ("192.0.0.192", False),
        ("168.63.129.16", False),
        ("198.18.0.1", False),
        ("203.0.113.1", False),
        ("224.0.0.251", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::1", False),
        ("2002:7f00:1::1", False),
        ("2001:0:1::1", False),
        ("2001:db8::1", False),
        ("fe80::1%1", False),
        ("fec0::1", False),
        ("fd00:ec2::254", False),
        ("ff0e::1", False),
        ("4000::1", False),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) is expected


@pytest.mark.parametrize("addresses", [[PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC], [PUBLIC, "::1"]])
def test_a_name_with_public_and_private_addresses(resolve_to: Callable[..., None], addresses: list[str]) -> None:
    resolve_to(addresses)
    assert "its host is not a public one" in refusal("http://mixed.example/", allow_private=False)


def test_the_connection_goes_to_the_address_that_was_checked(
    resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when it is looked up first, and private the next time."""
    resolve_to([PUBLIC], ["127.0.0.1"])
    connected = []

    def connect_tcp(self: Any, host: str, port: int, *args: Any) -> None:
        connected.append((host, port))
        raise httpcore.ConnectError("refused")

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect_tcp)
    assert "refused" in refusal("https://rebinding.example/", allow_private=False)
    assert connected == [(PUBLIC, 443)]


def test_the_next_address_is_tried_if_one_does_not_answer(server: Server, resolve_to: Callable[..., None]) -> None:
    resolve_to(["127.0.0.2", "127.0.0.1"])
    url = server.address(HELLO).replace("127.0.0.1", "two.example")
    assert fetch(url, max_bytes=5, allow_private=True) == b"hello"
    assert b"\r\nHost: two.example:" in server.requests[0]


@pytest.mark.usefixtures("everything_is_public")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: Server, status: int) -> None:
    url = server.address(HELLO)
    for location in (url, "/0", "0"):
        assert fetch(server.address(redirect(location, status)), max_bytes=5) == b"hello"


@pytest.mark.usefixtures("everything_is_public")
def test_redirects_are_counted(server: Server) -> None:
    server.address(HELLO)
    for count in range(3):
        url = server.address(redirect(f"/{count}"))
    assert fetch(url, max_bytes=5) == b"hello"
    assert "more than 3 redirects" in refusal(server.address(redirect("/3")))
    assert "more than 3 redirects" in refusal(server.address(redirect("/5")))


@pytest.mark.usefixtures("everything_is_public")
@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("ftp://a.example/", "not an http:// or https:// address"),
        ("file:///etc/hosts", "not an http:// or https:// address"),
        ("http://user:secret@a.example/", "a user name or password in the address"),
        ("http://a.example:x/", "not a valid address"),
    ],
)
def test_redirects_that_lead_nowhere(server: Server, location: str, expected: str) -> None:
    message = refusal(server.address(redirect(location)))
    assert expected in message
    assert "secret" not in message


def test_a_redirect_from_https_to_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.media.fetch, "_get", lambda *_: "http://a.example/")
    assert "'http://a.example/': a redirect from https to http" in refusal("https://a.example/")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ftp://a.example/", "not an http:// or https:// address"),
        ("a.example", "not an http:// or https:// address"),
        ("http://user:secret@a.example/", "'http://***@a.example/': a user name or password"),
        ("http://user@a.example/", "a user name or password"),
        ("http:///x", "no host in the address"),
        ("http://a.example:99999/", "no valid port"),
        ("http://a.example:0/", "no valid port"),
        ("http://0177.0.0.1/", "not a valid address"),
        ("http://[::1", "not a valid address"),
        ("http://a.example/\x00", "not a valid address"),
        ("http://" + "a" * 70 + ".example/", "its host is not found"),
        ("http://a..example/", "its host is not found"),
        ("http://nowhere.invalid/", "its host is not found"),
        ("http://127.0.0.1:1/" + "x" * 999, "xxx...': "),
    ],
)
def test_addresses_that_cannot_be_fetched(url: str, expected: str) -> None:
    assert expected in refusal(url)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello", "the server says HTTP 404; check the address"),
        (b"HTTP/1.1 500 x\r\n\r\n", "HTTP 500"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "HTTP 304"),
        (b"HTTP/1.1 302 Found\r\n\r\n", "HTTP 302"),
        (OK + b"Content-Length: 101\r\n\r\n", "it has more than 100 bytes"),
        (OK + b"\r\n" + bytes(101), "it has more than 100 bytes"),
        (CHUNKED + b"65\r\n" + bytes(101) + b"\r\n", "it has more than 100 bytes"),
        (OK + b"Content-Encoding: gzip\r\n\r\nhello", "the server compresses it"),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\nhello", "check the address"),
        (OK + b"Content-Length: 6\r\n\r\nhello", "without sending complete message body"),
        (OK + b"Content-Length: many\r\n\r\nhello", "check the address"),
        (OK + b"X: " + bytes(200_000), "check the address"),
        (b"what?\r\n\r\n", "check the address"),
        (b"", "Server disconnected without sending a response; check the address"),
    ],
)
def test_answers_that_are_refused(server: Server, answer: bytes, expected: str) -> None:
    assert expected in refusal(server.address(answer))


def test_a_long_body_is_not_read_to_its_end(server: Server) -> None:
    assert "more than 100 bytes" in refusal(server.address(OK + b"\r\n", *[bytes(60)] * 200))
    assert server.num_sent < 200


@pytest.mark.parametrize(
    "pieces",
    [
        [OK, *[b"X: y\r\n"] * 200],
        [b"HTTP/1.1 103 Early Hints\r\n\r\n"] * 200,
        [OK + b"\r\n", *[b"x"] * 200],
        [CHUNKED, *[b"1\r\nx\r\n"] * 200],
    ],
)
def test_a_server_that_drips(server: Server, pieces: list[bytes]) -> None:
    message = refusal(server.address(*pieces), max_bytes=1000, timeout_s=0.3)
    assert "no complete answer within 0.3 s" in message
    assert server.num_sent < 200


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_says_nothing(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        message = refusal(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/", timeout_s=0.3)
    assert "no complete answer within 0.3 s" in message


def test_a_name_that_takes_long_to_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: asked.wait(30))
    assert "no complete answer within 0.1 s" in refusal("http://slow.example/", timeout_s=0.1)
    asked.set()
