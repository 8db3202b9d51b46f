"""Progress of a start on the terminal: its stages, and the time that each took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from pipelines.stages import NullStages, Stages

if TYPE_CHECKING:
    from rich.progress import Progress


class PlainStages(NullStages):
    """Prints a line for each stage: "compile (about 90 s when cold) ... 84.2 s"."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._open_label = ""  # a line that waits for its time

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        """Prints the name, and the seconds when the stage is over."""
        label = _label(name, detail)
        self._write(f"{label} ... ")
        self._open_label = label
        try:
            with super().stage(name, detail):
                yield
            prefix = "" if self._open_label else f"{label} ... "
            self._write(f"{prefix}{self.timings[-1][1]:.1f} s\n")
        except BaseException:
            self._close_line()
            raise
        finally:
            self._open_label = ""

    def note(self, text: str) -> None:
        """Prints a line of its own."""
        self._close_line()
        self._write(f"{text}\n")

    def _close_line(self) -> None:
        if self._open_label:
            self._write("\n")
            self._open_label = ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class TerminalStages(NullStages):
    """Shows a spinner with running seconds, then prints a line for each stage."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        from rich.console import Console

        self._console = Console(file=stream, highlight=False)

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        """Shows the spinner, and leaves one line, or none if the stage fails."""
        label = _label(name, detail)
        with self._spinner(label), super().stage(name, detail):
            yield
        self.note(f"{label}  {self.timings[-1][1]:.1f} s")

    def note(self, text: str) -> None:
        """Prints a line, above the spinner if there is one."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def _spinner(self, label: str) -> Iterator[Progress]:
        from rich.markup import escape
        from rich.progress import Progress, SpinnerColumn, TextColumn

        columns = (SpinnerColumn(), TextColumn(escape(label)), TextColumn("[dim]{task.elapsed:.1f} s"))
        # stdout is another stream: rich must not move its output here.
        with Progress(*columns, console=self._console, transient=True, redirect_stdout=False) as progress:
            progress.add_task(label, total=None)
            yield progress


def console_stages(stream: TextIO | None) -> Stages:
    """Returns stages for a command: a spinner on a terminal, plain lines on other streams, none if it is closed."""
    if stream is None:
        return NullStages()
    return TerminalStages(stream) if stream.isatty() else PlainStages(stream)


def _label(name: str, detail: str) -> str:
    return f"{name} ({detail})" if detail else name
