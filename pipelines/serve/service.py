"""The bridge from the event loop to the engine's thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, Protocol, TypeVar

from pipelines.background import in_background
from pipelines.context import FinishReason, TextChunk, TextContext
from pipelines.engine.thread import EngineThread
from pipelines.serve.constraints import Constraints
from pipelines.serve.errors import ApiError, unavailable
from pipelines.serve.generation import Generation
from pipelines.serve.image_sources import ImageSources
from pipelines.serve.settings import ServeSettings
from pipelines.serve.token_texts import TokenTexts
from pipelines.text.parsers import AnswerFormat, answer_format
from pipelines.text_generation import TextGenerationPipeline

REFUSALS = frozenset({429, 503})
"""Statuses of requests that the server can't take now."""

State = Literal["loading", "ready", "draining", "failed"]
_Result = TypeVar("_Result")
_log = logging.getLogger("pipelines.serve")


class ServiceObserver(Protocol):
    """A watcher of all requests, such as the metrics; it is called on the event loop and must return at once."""

    def on_submit(self, generation: Generation) -> None:
        """The sequences of a request have been queued, in the task that serves it."""

    def on_chunk(self, context: TextContext, chunk: TextChunk) -> None:
        """A sequence has a chunk, the last one included."""

    def on_refusal(self, error: ApiError) -> None:
        """A request was refused because the server is full, loading or ending."""


class Service:
    """Serves one pipeline: admits requests, makes their contexts off the event loop, and brings their chunks to it.

    All methods are called on the event loop. load: gives the pipeline, and is called by `start` in a thread of its own.
    observers: are told what happens to requests. constraints: compiles those of requests. images: reads those that
    requests refer to.
    """

    def __init__(self, load: Callable[[], TextGenerationPipeline], settings: ServeSettings) -> None:
        self.settings = settings
        self.observers: list[ServiceObserver] = []
        self.error: BaseException | None = None  # why it has failed
        self.is_loaded = asyncio.Event()  # or has failed to
        self._load = load
        self._state: State = "loading"
        self._pipeline: TextGenerationPipeline | None = None
        self._thread: EngineThread | None = None
        self._token_texts: TokenTexts | None = None
        self._answer_format = AnswerFormat()
        self._worker = ThreadPoolExecutor(1, "contexts")
        self.constraints = Constraints()
        self.images = ImageSources(settings.allowed_image_hosts)
        self._running: dict[TextContext, tuple[Generation, int]] = {}
        self._num_admitted = 0
        self._fresh: deque[TextContext] = deque()  # contexts that have chunks, from the engine's thread
        self._is_waking = self._is_stopped = False

    @property
    def state(self) -> State:
        """State of the server, as /ready tells it."""
        if self._state == "ready" and not (self._thread is not None and self._thread.is_alive):
            return "failed"
        return self._state

    @property
    def pipeline(self) -> TextGenerationPipeline:
        """The pipeline.

        Raises:
            ApiError: It is still being loaded.
        """
        if self._pipeline is None:
            raise unavailable("The model is being loaded: try again later.")
        return self._pipeline

    @property
    def token_texts(self) -> TokenTexts:
        """The texts of single tokens."""
        assert self._token_texts is not None
        return self._token_texts

    @property
    def answer_format(self) -> AnswerFormat:
        """Format in which the model writes its reasoning and its tool calls.

        Raises:
            ApiError: It is still being loaded.
        """
        with self._refusing():
            self.check_ready()
        return self._answer_format

    @property
    def num_admitted(self) -> int:
        """Number of sequences that have not ended yet, those whose prompts are being encoded included."""
        return self._num_admitted

    async def start(self) -> None:
        """Begins to load the pipeline; `is_loaded` is set at the end."""
        self._loop = asyncio.get_running_loop()
        self._loading = asyncio.create_task(self._load_pipeline())

    async def _load_pipeline(self) -> None:
        try:
            pipeline = await asyncio.wrap_future(in_background(self._load_and_warm_up))
        except Exception as error:
            self.error, self._state = error, "failed"
        else:
            self._token_texts = TokenTexts(pipeline.tokenizer)
            self._answer_format = answer_format(pipeline.tokenizer.chat_template, self.settings.reasoning_parser)
            self._thread = EngineThread(pipeline.engine, self._on_chunk, self._on_failure)
            self._thread.start()
            self._pipeline = pipeline
            self._state = "ready" if self._state == "loading" else self._state
        self.is_loaded.set()

    def _load_and_warm_up(self) -> TextGenerationPipeline:
        pipeline = self._load()
        pipeline.warm_up()
        self.constraints.warm_up(pipeline)
        return pipeline

    def begin_draining(self) -> None:
        """Refuses new requests from now on."""
        self._state = "draining"

    async def stop(self) -> None:
        """Cancels what is running, and ends the engine's thread."""
        self.begin_draining()
        self._is_stopped = True
        self._loading.cancel()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.stop)
        self._worker.shutdown(wait=False, cancel_futures=True)
        self.constraints.close()
        self.images.close()
        await asyncio.sleep(0)  # the last chunks are delivered
        self._deliver()

    def check_ready(self) -> None:
        """Checks that requests are served.

        Raises:
            ApiError: The server is loading or draining, or its engine has died.
        """
        if self.state != "ready":
            messages = {"loading": "The model is being loaded", "draining": "The server is shutting down"}
            raise unavailable(messages.get(self.state, "The engine has failed") + ": try again later.")

    async def off_loop(self, call: Callable[[], _Result]) -> _Result:
        """Runs a call in the worker thread, one at a time, where it keeps no other client from being served."""
        return await self._loop.run_in_executor(self._worker, call)

    async def submit(
        self, make_contexts: Callable[[], Awaitable[Sequence[TextContext]]], num_sequences: int, num_prompts: int = 1
    ) -> Generation:
        """Admits a request, waits for its contexts, which `off_loop` helps to make, and queues them in the engine.

        Args:
            make_contexts: Makes the contexts: for each prompt those of its choices.
            num_sequences: Number of contexts.
            num_prompts: Number of prompts, of which each has as many choices.

        Raises:
            ApiError: The server is not ready, or too many requests wait.
            InputError: The request can't be served.
        """
        arrived, deadline = time.monotonic(), self._loop.time() + self.settings.request_timeout_s
        with self._refusing():
            self._admit(num_sequences)
            contexts = await self._made(make_contexts, num_sequences, deadline)
        generation = Generation(contexts, self._cancel, num_sequences // num_prompts, arrived)
        generation.expire_at(deadline, self._timeout_error())
        self._start(generation)
        return generation

    async def _made(
        self, make_contexts: Callable[[], Awaitable[Sequence[TextContext]]], num_sequences: int, deadline: float
    ) -> Sequence[TextContext]:
        """Contexts of a request that has been admitted; if they can't be made in time, it is so no longer."""
        try:
            async with asyncio.timeout_at(deadline):
                contexts = await make_contexts()
            assert len(contexts) == num_sequences
            for context in contexts:
                self.pipeline.engine.check(context)
            if self._is_stopped:
                raise unavailable("The server is shutting down.")
        except BaseException as error:
            self._release(num_sequences)
            if isinstance(error, TimeoutError):
                raise self._timeout_error() from error
            raise
        return contexts

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Tells the observers of a refusal in the block."""
        try:
            yield
        except ApiError as error:
            if error.status_code in REFUSALS:
                for observer in self.observers:
                    observer.on_refusal(error)
            raise

    def _admit(self, num_sequences: int) -> None:
        self.check_ready()
        limit = self.pipeline.config.max_batch_size + self.settings.max_queue_size
        if self._num_admitted >= limit:
            message = f"{self._num_admitted} requests are being served or wait: try again later."
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})
        self._num_admitted += num_sequences

    def _release(self, num_sequences: int) -> None:
        self._num_admitted -= num_sequences

    def _start(self, generation: Generation) -> None:
        assert self._thread is not None
        for observer in self.observers:
            observer.on_submit(generation)
        for index, context in enumerate(generation.contexts):
            self._running[context] = generation, index
            self._thread.submit(context)

    def _cancel(self, context: TextContext, reason: FinishReason) -> None:
        assert self._thread is not None
        self._thread.cancel(context, reason)

    def _timeout_error(self) -> ApiError:
        message = f"The request took longer than {self.settings.request_timeout_s:g} s (--request-timeout)."
        return ApiError(504, message, code="request_timeout", headers={"x-should-retry": "false"})

    def _on_chunk(self, context: TextContext) -> None:
        """Wakes the event loop, once for all chunks that it has not seen yet; called in any thread."""
        self._fresh.append(context)
        if not self._is_waking:
            self._is_waking = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        """Brings the new chunks to their generations."""
        self._is_waking = False  # before the queue is read: a chunk that comes after that wakes the loop again
        while self._fresh:
            context = self._fresh.popleft()
            while context.chunks and context in self._running:
                self._deliver_chunk(context, context.chunks.popleft())

    def _deliver_chunk(self, context: TextContext, chunk: TextChunk) -> None:
        generation, index = self._running[context]
        for observer in self.observers:
            observer.on_chunk(context, chunk)
        if chunk.finish_reason is not None:
            del self._running[context]
            self._release(1)
        generation.push(index, chunk)

    def _on_failure(self, error: Exception) -> None:
        _log.error("the engine failed; every request in it ended with this error", exc_info=error)
