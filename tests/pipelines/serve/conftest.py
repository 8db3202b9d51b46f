"""A server that the tests of a module share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

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


@pytest.fixture(scope="module")
def writing() -> Iterator[Callable[..., httpx.Client]]:
    """Makes the model of a family write these texts, and gives a client of its server."""
    from chat_models import WritingModel, chat_vocabulary, writing_pipeline  # slow to import

    servers: dict[str, tuple[LiveServer, httpx.Client]] = {}
    with ExitStack() as stack:

        def write(*texts: str, family: str = "qwen3") -> httpx.Client:
            if family not in servers:
                server = stack.enter_context(serving(writing_pipeline(family, [""])))
                servers[family] = server, stack.enter_context(server.client())
            model = servers[family][0].pipe.model
            assert isinstance(model, WritingModel)
            model.write([chat_vocabulary(family).ids(text) for text in texts])
            return servers[family][1]

        yield write
    for server, _ in servers.values():
        assert_idle(server.pipe)
