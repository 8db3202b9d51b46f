"""The server's compiler of constraints, with threads of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from pipelines.errors import InputError
from pipelines.sampling.constraints import CompilerBusyError, Constraint, ConstraintCompiler
from pipelines.serve.errors import ApiError, bad_request
from pipelines.text_generation import TextGenerationPipeline

_NUM_THREADS = 16
"""Requests that wait for their constraints at a time; the compiler bounds how many it really compiles."""

_log = logging.getLogger("pipelines.serve")


class Constraints:
    """Compiles constraints in threads of its own: a slow schema keeps no other request waiting for its prompt."""

    def __init__(self) -> None:
        self._compiler: ConstraintCompiler | None = None
        self._reason = "the model is being loaded"  # why there is no compiler
        self._threads = ThreadPoolExecutor(_NUM_THREADS, "constraints")

    def warm_up(self, pipeline: TextGenerationPipeline) -> None:
        """Makes the compiler, which takes seconds; where the tokenizer can't be used for it, requests are told so."""
        tokenizer = pipeline.tokenizer
        try:
            compiler = ConstraintCompiler(tokenizer, pipeline.prompts.vocab_size, tokenizer.eos_token_ids)
            compiler.warm_up()
        except Exception as error:
            self._reason = " ".join(str(error).split())[:300]
            _log.warning("structured output and forced tool calls are off: %s", self._reason)
        else:
            self._compiler = compiler

    async def compile(self, make: Callable[[ConstraintCompiler], Constraint | None]) -> Constraint | None:
        """Calls `make` with the compiler, in a thread.

        Raises:
            ApiError: The request can't be served, or there is no compiler.
        """
        if self._compiler is None:
            message = f"Structured output and forced tool calls are not available: {self._reason}"
            raise bad_request(message, code="constraints_unavailable")
        return await asyncio.get_running_loop().run_in_executor(self._threads, make, self._compiler)

    def close(self) -> None:
        """Ends the threads once what they compile is done."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@contextmanager
def naming(param: str) -> Iterator[None]:
    """Turns the errors of the compiler in the block into errors of the API, which name a field of the request."""
    try:
        yield
    except CompilerBusyError as error:
        message = f"{param}: {error}."
        raise ApiError(503, message, param=param, code="constraints_busy", headers={"Retry-After": "5"}) from error
    except InputError as error:
        raise bad_request(f"{param}: {error}", param) from error
