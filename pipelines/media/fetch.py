"""Downloads of files that requests name: from public hosts only, within a time and a size.

An address in a request must not make this machine read from its own network (server-side request forgery), so hosts
are resolved here, every address is checked, and the connection goes to an address that was checked.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from ssl import SSLContext
from typing import Any

import httpcore
import httpx

from pipelines.background import in_background
from pipelines.errors import InputError

MAX_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Compressed bodies could grow without limit, so none are asked for.
HEADERS = (("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", "graph-pipelines"))

GLOBAL_UNICAST = IPv6Network("2000::/3")  # is_global is true of unassigned blocks too
NAT64 = IPv6Network("64:ff9b::/96")  # an IPv4 address in the last 32 bits
# Clouds have services for the machine itself at these addresses, of which is_global is true.
CLOUD_SERVICES = (IPv4Network("192.0.0.0/24"), IPv4Network("168.63.129.16/32"))


class _Refusal(Exception):
    """The reason why an address can't be fetched, and the remedy; `fetch` adds the address."""


def fetch(url: str, *, max_bytes: int, timeout_s: float = 10.0, allow_private: bool = False) -> bytes:
    """Downloads the body that a web server returns for an address.

    Args:
        url: An http:// or https:// address, without user name and password.
        max_bytes: The largest body.
        timeout_s: Seconds for everything, from resolving the name to the last byte.
        allow_private: Whether the host may be one that is not public. A redirect may never lead to such a host.

    Raises:
        InputError: The address can't be used, the server can't be reached or reports a failure, or the body is larger.
    """
    trail = [url]
    try:
        return _follow(trail, time.monotonic() + timeout_s, max_bytes, allow_private)
    except _Refusal as refusal:
        reason = str(refusal)
    except httpcore.TimeoutException:
        reason = f"no complete answer within {timeout_s:g} s; try again, or download it and give the file"
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        reason = f"{str(error)[:200].rstrip('.') or type(error).__name__}; check the address and the network"
    raise InputError(f"can't fetch {', redirected to '.join(_shown(each) for each in trail)}: {reason}")


def _follow(trail: list[str], deadline: float, max_bytes: int, allow_private: bool) -> bytes:
    """Returns the body at the end of the redirects, which are added to `trail`."""
    url = _parse(trail[0])
    while True:
        public_only = len(trail) > 1 or not allow_private
        answer = _get(url, _CheckedBackend(deadline, public_only), max_bytes)
        if isinstance(answer, bytes):
            return answer
        if len(trail) > MAX_REDIRECTS:
            raise _Refusal(f"more than {MAX_REDIRECTS} redirects; give the address of the file itself")
        trail.append(answer)
        url = _parse(answer, redirected_by=url)


def _shown(url: str) -> str:
    """Formats an address for an error line: shortened, and without a password."""
    url = re.sub(r"//[^/]*@", "//***@", url)
    return repr(url if len(url) <= 200 else url[:200] + "...")


def _parse(text: str, redirected_by: httpx.URL | None = None) -> httpx.URL:
    try:
        url = redirected_by.join(text) if redirected_by else httpx.URL(text)
    except httpx.InvalidURL as error:
        raise _Refusal(f"not a valid address ({str(error)[:200].rstrip('.')}); check it") from None
    if url.scheme not in ("http", "https"):
        raise _Refusal("not an http:// or https:// address")
    if redirected_by and redirected_by.scheme == "https" and url.scheme == "http":
        raise _Refusal("a redirect from https to http; give the address of the file itself")
    if url.userinfo:
        raise _Refusal("a user name or password in the address; leave it out, or download it and give the file")
    if not url.host or (url.port is not None and not 0 < url.port < 2**16):
        raise _Refusal("no host in the address, or no valid port; check it")
    return url


def _get(url: httpx.URL, backend: httpcore.NetworkBackend, max_bytes: int) -> bytes | str:
    """Returns the body; or the address, a str, to which the server redirects."""
    # httpcore without httpx's client, which would use proxies, cookies, netrc and encodings.
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    headers = [("Host", url.netloc.decode("ascii")), *HEADERS]
    with (
        httpcore.ConnectionPool(network_backend=backend) as pool,
        pool.stream("GET", target, headers=headers) as response,
    ):
        answered = httpx.Headers(response.headers)
        if response.status in REDIRECTS and "location" in answered:
            return answered["location"]
        if not 200 <= response.status < 300:
            raise _Refusal(f"the server says HTTP {response.status}; check the address")
        if answered.get("content-encoding", "identity").lower() != "identity":
            raise _Refusal("the server compresses it, though asked not to; download it and give the file")
        return _read_body(response.iter_stream(), int(answered.get("content-length", 0)), max_bytes)


def _read_body(chunks: Iterable[bytes], announced_bytes: int, max_bytes: int) -> bytes:
    body = bytearray()
    if announced_bytes <= max_bytes:
        for chunk in chunks:
            body += chunk
            if len(body) > max_bytes:
                break
        else:
            return bytes(body)
    raise _Refusal(f"it has more than {max_bytes:,} bytes; give a smaller one")


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to addresses that it has resolved and checked itself, and stops at a deadline."""

    def __init__(self, deadline: float, public_only: bool) -> None:
        self.deadline = deadline
        self.public_only = public_only

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connects to the first address of the host that answers.

        Raises:
            _Refusal: An address is not public, and only public ones are allowed.
        """
        addresses = _resolve(host, port, self.deadline)
        # All of them must be public: a name with two addresses could reach the private one in the end.
        if self.public_only and not all(is_public(address) for address in addresses):
            # The message must not name the address: it would reveal this network to a stranger.
            raise _Refusal("its host is not a public one; give a public address, or download it and give the file")
        while True:
            address = addresses.pop(0)
            seconds = _remaining(self.deadline) / (len(addresses) + 1)
            try:
                stream = httpcore.SyncBackend().connect_tcp(address, port, seconds, local_address, socket_options)
                return _DeadlineStream(stream, self.deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not addresses:
                    raise


class _DeadlineStream(httpcore.NetworkStream):
    """A connection that ends at a deadline: httpcore's own timeouts start again at each read."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self.stream = stream
        self.deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, _remaining(self.deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, _remaining(self.deadline))

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            seconds = _remaining(self.deadline)
        except httpcore.TimeoutException:
            self.close()  # httpcore does not know this stream yet, so it can't
            raise
        return _DeadlineStream(self.stream.start_tls(ssl_context, server_hostname, seconds), self.deadline)

    def close(self) -> None:
        self.stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _remaining(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise httpcore.TimeoutException
    return seconds


def _resolve(host: str, port: int, deadline: float) -> list[str]:
    """Resolves every address of a host."""
    # getaddrinfo has no timeout: a call that takes too long is left to end by itself.
    answer = in_background(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    try:
        return [str(socket_address[0]) for *_, socket_address in answer.result(_remaining(deadline))]
    except TimeoutError:
        raise httpcore.TimeoutException from None
    except (OSError, ValueError):  # ValueError: a name that can't be encoded
        raise _Refusal("its host is not found; check the address and the network") from None


def is_public(text: str) -> bool:
    """Whether an IP address is public; an IPv6 address that embeds an IPv4 one counts as the latter."""
    address: IPv4Address | IPv6Address = ip_address(text)
    if isinstance(address, IPv6Address):
        in_nat64 = IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
        inner = address.ipv4_mapped or address.sixtofour or in_nat64
        if inner is None:
            return address in GLOBAL_UNICAST and address.is_global
        address = inner
    in_cloud = any(address in network for network in CLOUD_SERVICES)
    return address.is_global and not address.is_multicast and not in_cloud
