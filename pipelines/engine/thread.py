"""The thread that owns an engine: it steps while there are requests, and never waits for a reader of their chunks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pipelines.context import FinishReason, TextContext
from pipelines.engine.engine import Engine

OnChunk = Callable[[TextContext], None]


class EngineThread:
    """Steps an engine as long as there is work.

    on_chunk: is called in this thread, or in one that cancels, when a request has a new chunk, the last one included;
    it must return at once. on_failure: is called if the engine itself fails, after every request has ended with the
    error.
    """

    def __init__(
        self, engine: Engine, on_chunk: OnChunk, on_failure: Callable[[Exception], None] = lambda error: None
    ) -> None:
        self.engine, self._on_failure = engine, on_failure
        engine.on_chunk = on_chunk
        self._has_news, self._is_stopping, self._is_idle = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, context: TextContext) -> None:
        """Queues a request that the engine has checked."""
        self._is_idle.clear()
        self.engine.submit(context)
        self._has_news.set()

    def cancel(self, context: TextContext, reason: FinishReason = "cancelled") -> None:
        """Marks a request, as Engine.cancel does; its pages are freed before the next step."""
        self.engine.cancel(context, reason)
        self._has_news.set()

    def stop(self, timeout_s: float = 0.0) -> bool:
        """Lets the requests finish for `timeout_s`, then cancels the others; True if all had finished.

        No request may be submitted afterwards.
        """
        deadline = time.monotonic() + timeout_s
        while self.engine.has_work and self.is_alive and (left := deadline - time.monotonic()) > 0:
            self._is_idle.wait(min(left, 0.1))
        is_finished = not self.engine.has_work
        self._is_stopping.set()  # first: the steps leave no pause in which `end_all` would surely get its turn
        self._has_news.set()
        self.engine.end_all("cancelled")
        if self.is_alive and threading.current_thread() is not self._thread:
            self._thread.join()
        return is_finished

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            if not self.engine.has_work:
                self._is_idle.set()
                self._has_news.wait()
                self._has_news.clear()
                continue
            try:
                self.engine.step()
            except Exception as error:  # a defect of the engine: no request may wait for ever because of it
                self.engine.end_all("error", error)
                self._on_failure(error)
        self.engine.apply_marks()
