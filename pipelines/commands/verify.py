"""The comparison of a checkpoint's logits and greedy tokens with those of transformers in float64.

Legend: T positions of a prompt, t of a part of it, V vocab.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipelines.config import PipelineConfig
from pipelines.errors import InputError
from pipelines.load import prepare_pipeline
from pipelines.sampling.params import SamplingParams
from pipelines.stages import Stages

if TYPE_CHECKING:
    from pipelines.commands.verify_reference import ReferenceHead, ReferenceRun
    from pipelines.load import PreparedPipeline
    from pipelines.loading.checkpoint import Checkpoint
    from pipelines.text_generation import TextGenerationPipeline

Logits = npt.NDArray[np.float32]
ExactLogits = npt.NDArray[np.float64]

NUM_GREEDY = 32
"""New tokens that are compared after each prompt."""
PAGE_TOKENS = 128
BLOCK_BYTES = 64 * 2**20
"""Size of the float64 logits that are compared at once."""
MAX_FLOAT32_RATIO = 3.0
"""Largest ratio of our distance from float64 to that of transformers' float32 that roundings alone explain.

The ways in which transformers itself computes the tiny models of the tests (eager or sdpa attention, at once or by
chunks) differ from one another by at most 1.9 times in the largest distance and 1.15 times in the mean.
"""


@dataclass(frozen=True)
class Distance:
    """The distance of a prompt's logits from those in float64.

    max_difference, mean_difference: as fractions of the largest logit. top1_agreement: the fraction of positions with
    the same likeliest token. kl: the mean divergence from the distributions in float64, in nats. worst_position: that
    of the largest difference. num_same_greedy: greedy tokens that agree before the first that differs.
    """

    max_difference: float
    mean_difference: float
    top1_agreement: float
    kl: float
    worst_position: int
    num_same_greedy: int


@dataclass(frozen=True)
class Comparison:
    """The distances of a prompt's logits from float64: ours, and those of transformers in float32.

    num_greedy: greedy tokens that were compared; those after one on which float32 and float64 disagree are not.
    """

    num_tokens: int
    num_greedy: int
    ours: Distance
    float32: Distance

    def is_within(self, tolerance: float) -> bool:
        """Whether our largest difference is at most `tolerance` times the largest logit."""
        return self.ours.max_difference <= tolerance

    @property
    def is_as_float32(self) -> bool:
        """Whether ours are no farther from float64 than roundings in float32 explain."""
        return (
            self.ours.max_difference <= MAX_FLOAT32_RATIO * self.float32.max_difference
            and self.ours.mean_difference <= MAX_FLOAT32_RATIO * self.float32.mean_difference
        )


def prepare(config: PipelineConfig, stages: Stages | None = None) -> PreparedPipeline:
    """Prepares a run whose requests are computed one after the other.

    Raises:
        InputError: torch is missing, or as `prepare_pipeline`.
    """
    _require_torch()
    return prepare_pipeline(dataclasses.replace(config, max_batch_size=1), stages)


def verify(prepared: PreparedPipeline, texts: Sequence[str] = (), lengths: Sequence[int] = ()) -> list[Comparison]:
    """Runs both models, one after the other, on texts and on random tokens.

    While our model runs, only the hidden states and the head of transformers' are kept, and never the logits of more
    than a few positions.

    Args:
        prepared: The run, as `prepare` returns it.
        texts: Prompts.
        lengths: Lengths of prompts of random tokens; lengths around the window if there are neither texts nor lengths.

    Raises:
        InputError: A prompt does not fit, or as `load_pipeline`.
    """
    from pipelines.commands.verify_reference import load_reference

    prompts = _prompts(prepared, texts, lengths)
    max_length = prepared.prompts.max_length
    with prepared.stages.stage("transformers"):
        reference = load_reference(prepared)
        runs = [reference.run(prompt, min(NUM_GREEDY, max_length - len(prompt))) for prompt in prompts]
        head = reference.into_head()
    with prepared.load() as pipe:
        return [_compare(pipe, prompt, run, head) for prompt, run in zip(prompts, runs, strict=True)]


def compare(
    slabs: Iterable[tuple[int, Logits]], reference_logits: Callable[[int, int], tuple[Logits, ExactLogits]]
) -> tuple[DistanceSums, DistanceSums]:
    """Compares a prompt's logits, block by block.

    Args:
        slabs: The first position and the logits [t, V] of consecutive parts of the prompt.
        reference_logits: Returns the logits of the positions from a first one up to another, in float32 and float64.

    Returns:
        The distances of ours and of the reference in float32 from the reference in float64.

    Raises:
        ValueError: A slab does not begin where the last one ended.
    """
    ours, float32 = DistanceSums(), DistanceSums()
    for position, logits in _blocks(slabs):
        if position != ours.num_positions:
            raise ValueError(f"logits of position {position} where those of {ours.num_positions} were due")
        logits32, exact = reference_logits(position, position + len(logits))
        exact_log_p = _log_softmax(exact)
        ours.add(logits, exact, exact_log_p)
        float32.add(logits32, exact, exact_log_p)
    return ours, float32


class DistanceSums:
    """Running sums of a prompt's `Distance`."""

    def __init__(self) -> None:
        self.num_positions = self.num_same_top1 = self.worst_position = 0
        self.largest_logit = self.max = self.sum_of_means = self.sum_of_kl = 0.0

    def add(self, logits: Logits, exact: ExactLogits, exact_log_p: ExactLogits) -> None:
        """Adds the next positions [t, V]; `exact_log_p` holds the logarithms of the exact probabilities."""
        difference = np.abs(logits - exact)
        worst = difference.max(-1)
        if not np.isnan(self.max) and not worst.max() <= self.max:  # NaN is the worst of all
            self.max, self.worst_position = float(worst.max()), self.num_positions + int(worst.argmax())
        self.largest_logit = max(self.largest_logit, float(np.abs(exact).max()))
        self.sum_of_means += float(difference.mean(-1).sum())
        self.sum_of_kl += float((np.exp(exact_log_p) * (exact_log_p - _log_softmax(logits))).sum())
        self.num_same_top1 += int((logits.argmax(-1) == exact.argmax(-1)).sum())
        self.num_positions += len(logits)

    def distance(self, num_same_greedy: int) -> Distance:
        """The distance over all positions so far."""
        return Distance(
            max_difference=self.max / self.largest_logit,
            mean_difference=self.sum_of_means / self.num_positions / self.largest_logit,
            top1_agreement=self.num_same_top1 / self.num_positions,
            kl=self.sum_of_kl / self.num_positions,
            worst_position=self.worst_position,
            num_same_greedy=num_same_greedy,
        )


def _compare(pipe: TextGenerationPipeline, prompt: Sequence[int], run: ReferenceRun, head: ReferenceHead) -> Comparison:
    ours, float32 = compare(pipe.logit_slabs(prompt), lambda start, end: head.logits(run, start, end))
    if ours.num_positions != len(prompt):
        raise ValueError(f"logits of {ours.num_positions} positions where {len(prompt)} were due")
    num_same = _num_same(_greedy(pipe, prompt, len(run.greedy)), run.greedy)
    return Comparison(len(prompt), len(run.greedy), ours.distance(num_same), float32.distance(run.num_same_float32))


def _greedy(pipe: TextGenerationPipeline, prompt: Sequence[int], num_new: int) -> list[int]:
    """Generates greedy tokens, whatever the checkpoint's own sampling defaults are."""
    if not num_new:
        return []
    greedy = SamplingParams(max_new_tokens=num_new, ignore_eos=True, temperature=0.0, repetition_penalty=1.0)
    return pipe.generate([prompt], greedy)[0].tokens


def _num_same(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Number of tokens that agree before the first that differs."""
    return next((i for i, (our, their) in enumerate(zip(ours, theirs, strict=True)) if our != their), len(theirs))


def _blocks(slabs: Iterable[tuple[int, Logits]]) -> Iterator[tuple[int, Logits]]:
    """Cuts slabs into blocks that take little memory in float64."""
    for position, logits in slabs:
        num_rows = max(1, BLOCK_BYTES // (8 * logits.shape[1]))
        for start in range(0, len(logits), num_rows):
            yield position + start, logits[start : start + num_rows]


def _log_softmax(logits: Logits | ExactLogits) -> ExactLogits:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _prompts(prepared: PreparedPipeline, texts: Sequence[str], lengths: Sequence[int]) -> list[list[int]]:
    """Prompts of the texts, then of random tokens of each length; of lengths across the window if there are none."""
    limit = prepared.prompts.max_length
    for length in lengths:
        if not 1 <= length <= limit:
            raise InputError(f"--length {length} is out of range: a prompt has 1 to {limit} tokens (--max-length)")
    encoded = [prepared.prompts.encode(text).tokens for text in texts]
    if not encoded and not lengths:
        lengths = _lengths_across_the_window(prepared)
    rng, tokens = np.random.default_rng(0), _ordinary_tokens(prepared.checkpoint, prepared.prompts.vocab_size)
    return encoded + [rng.choice(tokens, length).tolist() for length in lengths]


def _lengths_across_the_window(prepared: PreparedPipeline) -> list[int]:
    """Lengths around the sliding window if there is one, or around a page of the cache."""
    windows = [group.window for group in prepared.kv_params.groups if group.window]
    border = min(windows, default=PAGE_TOKENS)
    limit = max(1, prepared.prompts.max_length - NUM_GREEDY)
    return sorted({min(length, limit) for length in (1, border - 1, border, border + 1, 3 * border)})


def _ordinary_tokens(checkpoint: Checkpoint, vocab_size: int) -> npt.NDArray[np.int64]:
    """All tokens but those that config.json names: transformers does not embed an image's placeholder as text."""
    configs = (checkpoint.config, checkpoint.config.get("text_config") or {})
    named = [
        value
        for config in configs
        for name, value in config.items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    ]
    return np.setdiff1d(np.arange(vocab_size), named)


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise InputError("verify compares with transformers, which needs torch: pip install torch") from None
