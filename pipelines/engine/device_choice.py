"""The choice of a step's tokens by the sampler on the device, as the engine asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from max.driver import Buffer

from pipelines.engine.step import RowOutputs
from pipelines.pipeline_model import ModelOutputs
from pipelines.sampling.device.rows import DeviceRow
from pipelines.sampling.device.sampler import DeviceSampler, SampledTokens
from pipelines.sampling.log_probabilities import TokenLogProbs


@dataclass(frozen=True)
class DeviceChoice:
    """The tokens that the device's sampler chooses for the rows of a step."""

    sampler: DeviceSampler
    sampled: SampledTokens
    rows: Sequence[RowOutputs]

    def insert_into(self, tokens: Buffer, places: Sequence[int], rows: Sequence[int]) -> Buffer:
        """Replaces the tokens [T] at `places` by those of `rows`, on the device."""
        return self.sampler.insert(tokens, self.sampled, places, rows)

    def collect(self) -> None:
        """Waits for the tokens, and gives them to the rows that want them."""
        for row, choice, log_probs in zip(self.rows, *self.sampled.collect(), strict=True):
            if row.next_sampler is not None:
                row.choice = choice
                row.log_probs = None if log_probs is None else partial(_log_probs_of, log_probs)


@dataclass(frozen=True)
class DeviceTokenSampler:
    """The device's sampler, with what the engine knows of the rows."""

    sampler: DeviceSampler

    def launch(self, outputs: ModelOutputs, rows: Sequence[RowOutputs]) -> DeviceChoice:
        """Starts choosing the next tokens of the rows that are complete; the others have any token."""
        sampled = self.sampler.launch(outputs.next_token_logits, device_rows(rows, self.sampler.vocab_size))
        return DeviceChoice(self.sampler, sampled, rows)


def device_rows(rows: Sequence[RowOutputs], vocab_size: int) -> list[DeviceRow]:
    """Describes the choice of each row; one that wants no token has the likeliest, which nobody looks at."""
    return [_device_row(row, vocab_size) for row in rows]


def _device_row(row: RowOutputs, vocab_size: int) -> DeviceRow:
    sampler = row.next_sampler
    return DeviceRow() if sampler is None else DeviceRow.of(sampler, vocab_size, row.context.params.logprobs)


def _log_probs_of(log_probs: TokenLogProbs | FloatingPointError, token: int) -> TokenLogProbs:
    if isinstance(log_probs, FloatingPointError):
        raise log_probs
    assert log_probs.token_id == token
    return log_probs
