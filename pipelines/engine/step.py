"""A step of the model in two halves: `launch`, which does not wait, and `collect`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kv_cache import KVCacheManager
from pipelines.context import TextContext
from pipelines.pipeline_model import ModelOutputs, PipelineModel
from pipelines.sampling.native import LogSoftmax, log_softmax
from pipelines.sampling.sampler import Choice, Sampler, sample_rows


class StepOutputs:
    """The outputs of a step on the host, each copied there when a row first asks for it."""

    def __init__(self, outputs: ModelOutputs) -> None:
        self._outputs = outputs
        self.logit_offsets: list[int] = outputs.logit_offsets.to_numpy().tolist()

    @cached_property
    def logits_MV(self) -> npt.NDArray[np.float32]:
        """Logits of all returned positions."""
        return self._outputs.logits.to_numpy()

    @cached_property
    def next_token_logits_BV(self) -> npt.NDArray[np.float32]:
        """Logits of each row's last position."""
        return self._outputs.next_token_logits.to_numpy()

    @cached_property
    def greedy_tokens_M(self) -> npt.NDArray[np.int64]:
        """Likeliest token of each returned position."""
        return self._outputs.greedy_tokens.to_numpy()

    @cached_property
    def max_logits_M(self) -> npt.NDArray[np.float32]:
        """Logit of the likeliest token of each returned position; not finite where no token is likeliest."""
        return self._outputs.max_logits.to_numpy()


@dataclass(frozen=True)
class Wanted:
    """The results that a row's consumer needs of the logits of its last position.

    sampler: chooses a token. num_top: log probabilities, with so many of the likeliest tokens.
    """

    sampler: Sampler | None = None
    num_top: int | None = None


@dataclass
class RowOutputs:
    """The outputs of one row of a step. Arrays are valid until the next step.

    row: its place in the batch. start: the position of its first token. num_tokens: tokens that the step computed.
    is_complete: whether all tokens of the request are now computed, so that the last logits choose the next one.
    choice, log_softmax: what its consumer wanted, once `choose_tokens` has it.
    """

    outputs: StepOutputs
    row: int
    start: int
    num_tokens: int
    is_complete: bool
    choice: Choice | None = None
    log_softmax: LogSoftmax | FloatingPointError | None = None

    @property
    def next_logits_V(self) -> npt.NDArray[np.float32]:
        """Logits of the token that follows the row's last one."""
        return self.outputs.next_token_logits_BV[self.row]

    @property
    def logits_TV(self) -> npt.NDArray[np.float32]:
        """Logits of all the row's tokens, if its consumer asked for as many."""
        end = self.outputs.logit_offsets[self.row + 1]
        return self.outputs.logits_MV[end - self.num_tokens : end]

    @property
    def greedy_token(self) -> int:
        """Likeliest token after the row's last one.

        Raises:
            FloatingPointError: The logits hold NaN or infinity, so that no token is likeliest.
        """
        last = self.outputs.logit_offsets[self.row + 1] - 1
        token = int(self.outputs.greedy_tokens_M[last])
        if not is_likeliest(self.outputs.max_logits_M[last]):
            raise FloatingPointError("the model's logits hold NaN or infinity: no token is likeliest")
        return token


def is_likeliest(max_logit: np.float32) -> bool:
    """Whether a position with this largest logit has a likeliest token.

    It has none if a logit is NaN or infinite, or if all are minus infinity: MAX's maximum begins at the lowest number.
    """
    return bool(np.isfinite(max_logit) and max_logit > np.finfo(np.float32).min)


@dataclass(frozen=True)
class LaunchedStep:
    """A step that has been started; the host is free until it collects it."""

    contexts: Sequence[TextContext]
    outputs: ModelOutputs

    @classmethod
    def launch(cls, model: PipelineModel, cache: KVCacheManager, contexts: Sequence[TextContext]) -> LaunchedStep:
        """Starts the step of these contexts, whose pages are allocated."""
        rows = [context.pages for context in contexts if context.pages is not None]
        kv_cache_inputs = cache.runtime_inputs(rows, [context.num_scheduled_tokens for context in contexts])
        num_logits = max(c.consumer.num_logits(c) if c.consumer is not None else 1 for c in contexts)
        return cls(contexts, model.execute(model.prepare_initial_token_inputs([contexts], kv_cache_inputs, num_logits)))

    def collect(self) -> Iterator[tuple[TextContext, RowOutputs]]:
        """Waits for the step and yields its rows."""
        outputs = StepOutputs(self.outputs)
        for row, context in enumerate(self.contexts):
            is_complete = context.num_scheduled_tokens == context.num_remaining_tokens
            start, num_tokens = context.num_computed_tokens, context.num_scheduled_tokens
            yield context, RowOutputs(outputs, row, start, num_tokens, is_complete)


def choose_tokens(rows: Sequence[tuple[TextContext, RowOutputs]]) -> None:
    """Chooses the tokens of all rows of a step together, and computes the log-softmax of those that want it."""
    wanted = [(row, context.consumer.wanted(context, row)) for context, row in rows if context.consumer is not None]
    sampled = [(row, wants.sampler) for row, wants in wanted if wants.sampler is not None]
    choices = sample_rows([row.next_logits_V for row, _ in sampled], [sampler for _, sampler in sampled])
    for (row, _), choice in zip(sampled, choices, strict=True):
        row.choice = choice
    logged = [(row, wants.num_top) for row, wants in wanted if wants.num_top is not None]
    entries = log_softmax([row.next_logits_V for row, _ in logged], [num_top for _, num_top in logged])
    for (row, _), entry in zip(logged, entries, strict=True):
        row.log_softmax = entry
