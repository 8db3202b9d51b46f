"""The systems of compare.py in processes of their own; compare_worker.py is the other end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from compare_models import NotAvailable

HERE = Path(__file__).parent


class Worker:
    """A system in a process of its own, which is stopped while it is not asked: waiting threads of some of them spin.

    Raises:
        NotAvailable: It can't load the model.
    """

    def __init__(self, python: Path, system: str, model: Path, encoding: str, max_length: int) -> None:
        command = [str(python), str(HERE / "compare_worker.py"), system, str(model), encoding, str(max_length)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=dict(os.environ),  # without the PYTHONEXECUTABLE that MAX sets unseen by Python
        )
        try:
            self.settings = self._read()
        except NotAvailable:
            self.close()
            raise
        self.process.send_signal(signal.SIGSTOP)

    def open(self, prompts: list[list[int]]) -> float:
        """Computes prompts; the tokens a second until the last of them has its first token."""
        return sum(map(len, prompts)) / self._ask(open=prompts)["seconds"]

    def decode(self, num_rows: int, num_new: int) -> float:
        """Adds tokens to each of the rows; the tokens a second of the median step, of all rows together."""
        return num_rows / float(np.median(self._ask(decode=num_new)["steps"]))

    def close_rows(self) -> None:
        """Drops the rows."""
        self._ask(close=True)

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise NotAvailable(f"it ended with {self.process.wait()}") from None
        try:
            return self._read()
        finally:
            self.process.send_signal(signal.SIGSTOP)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"it ended with {self.process.wait()}"}
        if "error" in answer:
            raise NotAvailable(answer["error"])
        return answer


def each(workers: dict[str, Worker], work: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Lets the systems take their turn; one that fails is ended, and left out from then on."""
    found = {}
    for name, worker in list(workers.items()):
        try:
            found[name] = work(worker, *arguments)
        except NotAvailable as reason:
            click.echo(f"{name} is left out: {reason}", err=True)
            workers.pop(name).close()
    return found
