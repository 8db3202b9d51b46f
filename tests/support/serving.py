"""A server around the fake model of fake_model.py, in a thread of its own, and a tokenizer for it that knows chats."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import httpx
from fake_model import EOS, VOCAB_SIZE, FakeImage, FakeImageProcessor, FakeModel, FakeTokenizer, new_pipeline, text_of
from tokenizers import AddedToken, Tokenizer, decoders, models

from pipelines.errors import InputError
from pipelines.serve.runner import new_server, reserve_port
from pipelines.serve.service import Service
from pipelines.serve.settings import ServeSettings
from pipelines.text.guard import ControlTokenGuard
from pipelines.text.prompts import PromptEncoder
from pipelines.text_generation import TextGenerationPipeline

MODEL, ALIAS = "fake/model", "alias"
_Found = TypeVar("_Found")


def eventually(find: Callable[[], _Found], timeout_s: float = 30.0) -> _Found:
    """What `find` gives once it is true, which another thread brings about."""
    deadline = time.monotonic() + timeout_s
    while not (found := find()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
    return found


class ChatTokenizer(FakeTokenizer):
    """Renders a chat as a letter for each role, its content and ";", then "=>", or the template's variable `end`.

    rendered: the texts of all chats.
    """

    has_chat_template, chat_template = True, ""
    class_name, special_tokens = "ChatTokenizer", dict[str, str]()
    vocab_size = VOCAB_SIZE

    def __init__(self) -> None:
        self.rendered: list[str] = []

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], guard: ControlTokenGuard | None = None, **kwargs: Any
    ) -> str:
        if kwargs.pop("refuse", False):
            raise InputError("the model's chat template can't take these messages: it refuses")
        turns = [message["role"][0].upper() + _text(message["content"]) + ";" for message in messages]
        end = kwargs.get("end", "=>") if kwargs.get("add_generation_prompt", True) else ""
        self.rendered.append("".join(turns) + end)
        return self.rendered[-1]

    def guard(self, image_tokens: Sequence[str] = (), exempt: str = "") -> ControlTokenGuard:
        return ControlTokenGuard({})

    def encode_stretches(self, stretches: Sequence[tuple[str, bool]], guard: ControlTokenGuard) -> list[int]:
        return [token for text, _ in stretches for token in self.encode(text.replace("\n", ""))]

    def min_num_tokens(self, text: str) -> int:
        return len(text)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return text_of(token_ids)

    def to_json(self) -> str:
        tokenizer = Tokenizer(models.BPE({chr(ord("0") + token): token for token in range(VOCAB_SIZE)}, []))
        tokenizer.add_special_tokens([AddedToken(chr(ord("0") + EOS), special=True)])
        tokenizer.decoder = decoders.ByteLevel()
        return str(tokenizer.to_str())


class PictureProcessor(FakeImageProcessor):
    """Tells images apart by their width."""

    def process(self, image: Any) -> FakeImage:
        return super().process(image.width % 256)


def _text(content: str | Sequence[Mapping[str, str]]) -> str:
    if isinstance(content, str):
        return content
    return "".join("~" if part["type"] == "image" else part["text"] for part in content)


def chat_pipeline(
    takes_images: bool = True, num_pages: dict[str, int] | None = None, **settings: Any
) -> TextGenerationPipeline:
    """settings: of PipelineConfig."""
    pipe = new_pipeline(num_pages, **{"max_batch_tokens": 64, **settings})
    assert pipe.config.max_length is not None
    processor = PictureProcessor if takes_images else None
    prompts = PromptEncoder(ChatTokenizer(), VOCAB_SIZE, pipe.config.max_length, False, processor)  # type: ignore[arg-type]
    return TextGenerationPipeline(pipe.config, pipe.model, pipe.cache, prompts)


class LiveServer:
    """A server that runs in a thread. pipe: what it serves."""

    def __init__(self, pipe: TextGenerationPipeline, **settings: Any) -> None:
        self.pipe = pipe
        self.settings = ServeSettings(**{"port": 0, "served_model_names": (MODEL, ALIAS), **settings})
        listener = reserve_port(self.settings.host, 0)
        self.address = listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.service = Service(self.load, self.settings)
        self.may_load = threading.Event()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listener)), daemon=True)
        self._thread.start()

    def load(self) -> TextGenerationPipeline:
        assert self.may_load.wait(30)
        return self.pipe

    async def _serve(self, listener: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = new_server(self.service, self.settings)
        self._is_up.set()
        await self.server.serve([listener])

    def begin_shutdown(self) -> None:
        assert self._is_up.wait(30)
        if self.loop.is_closed():  # a test has done it
            return
        self.loop.call_soon_threadsafe(self.server.begin_shutdown)

    def wait(self) -> None:
        """Waits for the end of the server."""
        self._thread.join(30)
        assert not self._thread.is_alive()

    def client(self, **settings: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **settings)


@contextmanager
def serving(pipe: TextGenerationPipeline | None = None, **settings: Any) -> Iterator[LiveServer]:
    """A server that is ready, until the block ends."""
    server = LiveServer(pipe or chat_pipeline(), **settings)
    server.may_load.set()
    try:
        with server.client() as client:
            eventually(lambda: client.get("/ready").status_code == 200)
        yield server
    finally:
        server.begin_shutdown()
        server.wait()


def events_of(lines: Iterator[str]) -> list[Any]:
    """The events of a stream, each of which is one line "data: " and an empty one; [DONE] is the last."""
    text = "\n".join(lines)
    events = [event.strip("\n") for event in text.split("\n\n") if event.strip("\n")]
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def stream(client: httpx.Client, path: str, **body: Any) -> list[Any]:
    """The events of a streamed answer."""
    with client.stream("POST", path, json={"stream": True, **body}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        return events_of(response.iter_lines())


def model_of(server: LiveServer) -> FakeModel:
    assert isinstance(server.pipe.model, FakeModel)
    return server.pipe.model


class Held:
    """A server whose engine waits in the middle of a step until it is released."""

    def __init__(self, server: LiveServer) -> None:
        self.is_held, self.may_go_on = threading.Event(), threading.Event()
        model_of(server).during_step = self._wait

    def _wait(self) -> None:
        self.is_held.set()
        assert self.may_go_on.wait(30)


def post_and_leave(server: LiveServer, path: str, has_begun: Callable[[], Any], **body: Any) -> None:
    """Sends a request and leaves without its answer as soon as `has_begun`: the server works for it by then."""
    with closing(http.client.HTTPConnection(*server.address)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        eventually(has_begun)


def post_in_background(server: LiveServer, path: str, **body: Any) -> Callable[[], httpx.Response]:
    responses: list[httpx.Response] = []

    def post() -> None:
        with server.client() as client:
            responses.append(client.post(path, json=body))

    thread = threading.Thread(target=post)
    thread.start()

    def result() -> httpx.Response:
        thread.join()
        return responses[0]

    return result
