"""The device's sampler: launches the graphs that a step's rows need, and collects what they chose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from max.driver import Buffer, Device, DeviceEvent, Usage
from max.engine import Model
from numpy.typing import NDArray

from kv_cache import to_device
from pipelines.sampling.device.graphs import MAX_TOP
from pipelines.sampling.device.rows import DeviceRow, changes_of, sampling_of
from pipelines.sampling.device.search import num_passes_of
from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.sampling.sampler import Choice, no_choice

LOWEST = float(np.finfo(np.float32).min)
RowLogProbs = TokenLogProbs | FloatingPointError | None
"""Of a row: None if it wanted none, an error if the model's own logits have none."""


@dataclass(frozen=True)
class SampledTokens:
    """The tokens of a step, which may still be on their way.

    tokens: [B] int64 on the device, an input of the next step; of a row without an answer any token. logits, processed:
    before and after penalties and masks; nothing may write to them before they are collected. reports: those of the
    graphs, on the host once the event is reached. sources: where they are copied from.
    """

    tokens: Buffer
    rows: Sequence[DeviceRow]
    logits: Buffer
    processed: Buffer
    reports: Sequence[Buffer]
    sources: Sequence[Buffer]
    event: DeviceEvent

    def collect(self) -> tuple[list[Choice], list[RowLogProbs]]:
        """Waits for the tokens, but not for what was launched after them: of each row its choice, and what it logs."""
        self.event.synchronize()
        report, *log_reports = [report.to_numpy().tolist() for report in self.reports]
        choices = [self._choice(i, int(token), peak) for i, (token, peak) in enumerate(report)]
        log_probs: list[RowLogProbs] = [None] * len(self.rows)
        for log_report in log_reports:
            for i, numbers in zip(_logged(self.rows), log_report, strict=True):
                log_probs[i] = _log_probs(int(report[i][0]), self.rows[i].num_top or 0, numbers)
        return choices, log_probs

    def _choice(self, row: int, token: int, peak: float) -> Choice:
        error = self.rows[row].error
        if error is not None:
            return error
        if is_finite_peak(peak):
            return token
        return no_choice(self.logits[row, :].to_numpy(), self.processed[row, :].to_numpy())


class DeviceSampler:
    """Chooses the tokens of steps on the device that has their logits.

    The distributions are those of the host's sampler, and so are the random numbers: a request has the same text in
    any batch, and after a preemption, since both are the request's own.
    """

    def __init__(self, models: Mapping[str, Model], device: Device, vocab_size: int) -> None:
        """Takes the compiled graphs of `build_graphs`, by name, for logits of this device and vocabulary."""
        self.vocab_size = vocab_size
        self._models, self._device = models, device

    def launch(self, logits: Buffer, rows: Sequence[DeviceRow]) -> SampledTokens:
        """Starts to choose a token from each row of logits [B, V], float32 on the device, and does not wait for it.

        Raises:
            ValueError: The logits have another shape.
        """
        if tuple(logits.shape) != (len(rows), self.vocab_size):
            raise ValueError(f"logits of shape {tuple(logits.shape)} are not {len(rows)} rows of {self.vocab_size}")
        processed = logits
        if (changes := changes_of(rows, -(-self.vocab_size // 8))) is not None:
            (processed,) = self._run("process", logits, *vars(changes).values())
        if (sampling := sampling_of(rows, self.vocab_size)) is None:
            tokens, report = self._run("greedy", processed)
        else:
            passes = [_on_host(num_passes_of(True) * sampling.has_top_k)]
            passes += [_on_host(num_passes_of(False) * sampling.has_top_p)]
            tokens, report = self._run("sample", processed, sampling.params_BC, *passes)
        sources = [report, *self._log_probabilities(logits, tokens, rows)]
        reports = [self._begin_copy(source) for source in sources]
        event = self._device.default_queue.record_event()
        return SampledTokens(tokens, rows, logits, processed, reports, sources, event)

    def insert(self, tokens: Buffer, sampled: SampledTokens, places: Sequence[int], rows: Sequence[int]) -> Buffer:
        """Replaces the tokens [T] of the next step at `places` by those chosen for `rows`, without waiting for them."""
        indices = np.array([places, rows], np.int64)
        return self._run("insert", tokens, sampled.tokens, *indices)[0]

    def _log_probabilities(self, logits: Buffer, tokens: Buffer, rows: Sequence[DeviceRow]) -> Sequence[Buffer]:
        """Starts the log probabilities of the rows that want some: their report, if there are any."""
        if not (logged := _logged(rows)):
            return ()
        num_top = max(min(rows[i].num_top or 0, MAX_TOP, self.vocab_size) for i in logged)
        return self._run("log_probabilities", logits, tokens, np.array(logged, np.int64), _on_host(num_top))

    def _run(self, name: str, *inputs: Buffer | NDArray[Any]) -> list[Buffer]:
        """Launches a graph; arrays are brought to the device first."""
        placed = [each if isinstance(each, Buffer) else to_device(each, self._device) for each in inputs]
        return self._models[name].execute(*placed)

    def _begin_copy(self, source: Buffer) -> Buffer:
        """Begins to copy a buffer, which must live on, to host memory that the device writes to itself."""
        if self._device.is_host:
            return source
        usage = Usage.STAGING | Usage.UNTRACKED
        staged = Buffer(dtype=source.dtype, shape=source.shape, device=self._device, usage=usage)
        staged.inplace_copy_from(source)
        return staged


def is_finite_peak(peak: float) -> bool:
    """Whether a row with this largest logit has a likeliest token: MAX's maximum begins at the lowest number."""
    return math.isfinite(peak) and peak > LOWEST


def _on_host(number: int) -> Buffer:
    return Buffer.from_numpy(np.array(number, np.int32))


def _logged(rows: Sequence[DeviceRow]) -> list[int]:
    """Places of the rows that want log probabilities."""
    return [i for i, row in enumerate(rows) if row.num_top is not None]


def _log_probs(token: int, num_top: int, numbers: Sequence[float]) -> TokenLogProbs | FloatingPointError:
    """Reads a row of the report of the graph `log_probabilities`."""
    peak, total, chosen, *top = numbers
    if not is_finite_peak(peak):
        return FloatingPointError(f"the model answered with a logit of {peak}: it has no log probabilities")
    log_total = peak + math.log(total)
    finite = [logit if logit > LOWEST else -math.inf for logit in top[MAX_TOP:]]  # the graph knows no lower ones
    entries = [(int(i), logit - log_total) for i, logit in zip(top[:MAX_TOP], finite, strict=True)]
    return TokenLogProbs(token, chosen - log_total, tuple(entries[:num_top]))
