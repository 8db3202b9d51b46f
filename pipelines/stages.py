"""Reports of the stages of a start, with the time that each took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import Protocol


class Stages(Protocol):
    """A receiver of reports about the stages of a start."""

    timings: list[tuple[str, float]]  # name, seconds: the stages that were completed

    def stage(self, name: str, detail: str = "") -> AbstractContextManager[None]:
        """Returns a context that lasts as long as the stage."""

    def note(self, text: str) -> None:
        """Reports one line of text."""


class NullStages:
    """Keeps the timings and prints nothing. The default of the library."""

    def __init__(self) -> None:
        self.timings: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        """Times a stage; one that fails is left out."""
        start = perf_counter()
        yield
        self.timings.append((name, perf_counter() - start))

    def note(self, text: str) -> None:
        """Does nothing."""
