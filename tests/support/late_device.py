"""A device that is simulated: the host learns of a step's tokens when it collects them, and not before.

What it computes, it computes at launch, in the order of the launches, as the queue of a GPU does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
from max.driver import Buffer

from pipelines.engine.step import LogProbs, RowOutputs
from pipelines.pipeline_model import ModelOutputs
from pipelines.sampling.log_probabilities import token_log_probs
from pipelines.sampling.native import log_softmax
from pipelines.sampling.sampler import Choice, sample_rows


@dataclass
class LateSampler:
    """events: what the host did, in order. failures: errors of the next launches."""

    events: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    num_launched: int = 0

    def launch(self, outputs: ModelOutputs, rows: Sequence[RowOutputs]) -> LateTokens:
        if self.failures:
            raise self.failures.pop(0)
        self.events.append(f"choose {self.num_launched}")
        self.num_launched += 1
        return LateTokens(self, self.num_launched - 1, rows, outputs.next_token_logits.to_numpy().copy())


@dataclass
class LateTokens:
    sampler: LateSampler
    number: int
    rows: Sequence[RowOutputs]
    logits_BV: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        self.choices: dict[int, Choice] = {}
        self.log_probs: dict[int, LogProbs] = {}
        for row in self.rows:
            num_top = row.context.params.logprobs
            if row.next_sampler is not None:
                logits_V = self.logits_BV[row.row]
                (self.choices[row.row],) = sample_rows([logits_V], [row.next_sampler])
                if num_top is not None:
                    (softmax,) = log_softmax([logits_V], [num_top])
                    self.log_probs[row.row] = partial(token_log_probs, logits_V, softmax=softmax)

    def insert_into(self, tokens: Buffer, places: Sequence[int], rows: Sequence[int]) -> Buffer:
        array = tokens.to_numpy().copy()
        for place, row in zip(places, rows, strict=True):
            choice = self.choices[row]
            array[place] = 0 if isinstance(choice, Exception) else choice
        return Buffer.from_numpy(array)

    def collect(self) -> None:
        self.sampler.events.append(f"collect {self.number}")
        for row in self.rows:
            row.choice, row.log_probs = self.choices.get(row.row), self.log_probs.get(row.row)
