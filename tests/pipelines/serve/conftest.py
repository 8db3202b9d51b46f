"""A server that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fake_model import assert_idle
from serving import LiveServer, serving


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with serving() as server:
        yield server
    assert_idle(server.pipe)


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
