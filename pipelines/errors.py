"""The exception for input that can't be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Input that can't be used. The message is one line that names the input and says what to do.

    The command line prints it and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@contextmanager
def naming_prompt(number: int, num_prompts: int) -> Iterator[None]:
    """Puts the number of the prompt, counted from 1, in front of an InputError about one of several prompts.

    Raises:
        InputError: That of the block, with the number if there are several prompts.
    """
    try:
        yield
    except InputError as error:
        if num_prompts == 1:
            raise
        raise InputError(f"prompt {number}: {error}") from error
