"""The one exception that users meet."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave can't be used: one line that names it and says what to do.

    The command line prints it and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
