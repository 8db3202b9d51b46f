"""The server's process: its port, its signals, and its end."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any, cast

import uvicorn

from pipelines.errors import InputError
from pipelines.serve.app import create_app
from pipelines.serve.service import Service
from pipelines.serve.settings import ServeSettings

_CUT_S = 2.0
"""For streams that were cut to tell their clients, after the shutdown timeout."""
_BACKLOG = 2048
_SWITCH_INTERVAL_S = 0.0005
"""After each read and write of a socket the event loop waits so long for a thread that renders or tokenizes. With
Python's 5 ms, a hundred large requests would keep /health waiting for a quarter of a second."""
_KEEP_ALIVE_S = 20
"""For idle connections: longer than the clients' own limits (httpx 5 s, aiohttp 15 s), so that they close first."""


def reserve_port(host: str, port: int) -> socket.socket:
    """Binds the server's socket, before anything is loaded; port 0: any that is free.

    Raises:
        InputError: The port is in use, or the address is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} can't be resolved: {error}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"can't listen on {host} port {port}: {reason}; choose another --port or --host") from None
    return listener


def run(service: Service, settings: ServeSettings, listener: socket.socket | None = None) -> None:
    """Serves until SIGTERM or SIGINT; a second signal ends the process at once.

    listener: what `reserve_port` gave; None: it is reserved here.

    Raises:
        InputError: The port is in use, or the model can't be loaded.
    """
    listener = listener or reserve_port(settings.host, settings.port)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    new_server(service, settings).run([listener])
    if service.error is not None:
        raise service.error


def new_server(service: Service, settings: ServeSettings) -> Server:
    """The server of a service."""
    config = uvicorn.Config(
        create_app(service, settings),
        log_config=None,
        log_level="warning",
        access_log=False,
        http="h11",  # whose connections `on_tick` knows
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(_CUT_S),
    )
    return Server(config, service, settings)


class Server(uvicorn.Server):
    """A server that first refuses new requests when it is told to end, and lets those that run finish for a while."""

    def __init__(self, config: uvicorn.Config, service: Service, settings: ServeSettings) -> None:
        super().__init__(config)
        self._service, self._settings = service, settings
        self._num_signals = 0
        self._drain: asyncio.Task[None] | None = None
        self._waiting_since: dict[Any, float] = {}  # connections that have sent no whole request

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal: the first begins the shutdown, the second ends the process."""
        self._num_signals += 1
        if self._num_signals > 1:
            os._exit(128 + sig)  # threads may be anywhere
        self._loop.call_soon_threadsafe(self.begin_shutdown)

    def begin_shutdown(self) -> None:
        """Refuses new requests and ends once those that run have finished, or are out of time."""
        if self._drain is None:
            self._drain = asyncio.create_task(self._drain_requests())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen, and to load; ends the server if that fails."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._watch = asyncio.create_task(self._watch_loading())

    async def on_tick(self, counter: int) -> bool:
        """Closes connections whose headers do not end; uvicorn calls it ten times a second."""
        now, connections = time.monotonic(), cast(set[Any], self.server_state.connections)
        waiting = [each for each in connections if each.cycle is None or each.cycle.response_complete]
        self._waiting_since = {each: self._waiting_since.get(each, now) for each in waiting}
        for connection, since in self._waiting_since.items():
            if now - since > self._settings.header_timeout_s and connection.transport is not None:
                connection.transport.abort()
        return await super().on_tick(counter)

    async def _watch_loading(self) -> None:
        await self._service.is_loaded.wait()
        if self._service.error is not None:
            self.should_exit = True

    async def _drain_requests(self) -> None:
        deadline = time.monotonic() + self._settings.shutdown_timeout_s
        self._service.begin_draining()
        while self._is_busy and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        with suppress(asyncio.CancelledError):
            await self._service.stop()  # streams that are cut here say so
        self.should_exit = True

    @property
    def _is_busy(self) -> bool:
        """Whether an answer is being computed or sent."""
        return self._service.num_admitted > 0 or bool(self.server_state.tasks)
