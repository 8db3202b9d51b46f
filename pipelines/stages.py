"""Somebody to tell what a start is doing, and how long each part took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import Protocol


class Stages(Protocol):
    """Somebody to tell about the stages of a start."""

    timings: list[tuple[str, float]]  # name, seconds: the stages that were completed

    def stage(self, name: str, detail: str = "") -> AbstractContextManager[None]:
        """A context that lasts as long as the stage."""

    def note(self, text: str) -> None:
        """Say one line."""


class NullStages:
    """Says nothing, and keeps the timings. The default of the library."""

    def __init__(self) -> None:
        self.timings: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        """Time a stage."""
        start = perf_counter()
        yield
        self.timings.append((name, perf_counter() - start))

    def note(self, text: str) -> None:
        """Nothing."""
