"""The one exception that users meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave can't be used: one line that names it and says what to do.

    The command line prints it and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@contextmanager
def naming_prompt(number: int, num_prompts: int) -> Iterator[None]:
    """Makes an InputError about one of several prompts say which, counted from 1."""
    try:
        yield
    except InputError as error:
        if num_prompts == 1:
            raise
        raise InputError(f"prompt {number}: {error}") from error
