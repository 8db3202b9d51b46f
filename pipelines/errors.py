"""The exceptions for input that can't be used and for memory that is out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

UTILIZATION = "device_memory_utilization (--device-memory-utilization)"
LOWER = (
    "lower max_batch_tokens (--max-batch-tokens), max_batch_size (--max-batch-size), "
    f"kv_cache_memory (--kv-cache-memory) or {UTILIZATION}"
)
OUT_OF_MEMORY = ("OUT_OF_MEMORY", "(out of memory", "Memory manager cannot satisfy")
"""Parts of MAX's errors when a device has no memory left: the driver's code, or words of MAX's own allocator."""


class InputError(ValueError):
    """Input that can't be used. The message is one line that names the input and says what to do.

    The command line prints it and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class DeviceMemoryError(RuntimeError):
    """Raised when a device runs out of memory in a step. The message is one line that says what to lower."""


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


@contextmanager
def loading_onto_devices() -> Iterator[None]:
    """Turns a device's out-of-memory error while a model is loaded into one line that names the remedy.

    Raises:
        InputError: A device had no memory left.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"a device ran out of memory while the model was loaded ({_summary(error)}): {LOWER}"
        ) from error


def step_error(error: Exception) -> Exception:
    """Returns the error that a request of a failed step ends with: one line with the remedy if memory was out."""
    if not is_out_of_memory(error):
        return error
    explained = DeviceMemoryError(f"a device ran out of memory in a step ({_summary(error)}): {LOWER}")
    explained.__cause__ = error
    return explained


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of MAX says that memory is out."""
    return not isinstance(error, InputError) and any(words in str(error) for words in OUT_OF_MEMORY)


def _summary(error: Exception) -> str:
    """The line of the error that says so, shortened."""
    lines = [line.strip() for line in str(error).splitlines()]
    line = next(line for line in lines if any(words in line for words in OUT_OF_MEMORY))
    return line if len(line) <= 160 else f"{line[:157]}..."
