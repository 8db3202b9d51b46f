"""The numbers of a benchmark run: percentiles of latencies, throughput, and failures by kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pipelines.benchmark.outcome import Outcome

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Distribution:
    """Mean and percentiles of a latency, in milliseconds; count: of the values. No values: None."""

    count: int
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Distribution:
        """Percentiles are interpolated linearly between the two nearest ranks, as numpy does by default."""
        if not seconds:
            return cls(0)
        milliseconds = np.asarray(seconds, np.float64) * 1e3
        return cls(len(seconds), float(milliseconds.mean()), *map(float, np.percentile(milliseconds, PERCENTILES)))


@dataclass(frozen=True)
class ErrorCount:
    """Failures of one kind. example: the message of the first."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True)
class Report:
    """The result of a load. docs/benchmarking.md defines each number.

    num_unfinished: requests that had not ended when the load was stopped. num_prompt_tokens, num_output_tokens,
    num_cached_tokens: of all completed requests. has_usage: the server counted them; otherwise prompts count as
    calibrated, and each chunk as one token. ttft_ms, itl_ms, tpot_ms, e2e_ms: of completed requests. send_delay_ms: of
    all; None where no request was due at a time.
    """

    num_requests: int
    num_completed: int
    num_failed: int
    num_unfinished: int
    duration_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    has_usage: bool
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_ms: Distribution
    itl_ms: Distribution
    tpot_ms: Distribution
    e2e_ms: Distribution
    send_delay_ms: Distribution | None
    errors: tuple[ErrorCount, ...]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], duration_s: float, num_unfinished: int = 0) -> Report:
        """Computes the numbers of a load that ran for `duration_s`."""
        done = [outcome for outcome in outcomes if outcome.error is None]
        num_prompt_tokens = sum(outcome.num_prompt_tokens for outcome in done)
        num_output_tokens = sum(outcome.num_output_tokens for outcome in done)
        is_scheduled = any(outcome.plan.scheduled_s is not None for outcome in outcomes)
        return cls(
            num_requests=len(outcomes) + num_unfinished,
            num_completed=len(done),
            num_failed=len(outcomes) - len(done),
            num_unfinished=num_unfinished,
            duration_s=duration_s,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=num_output_tokens,
            num_cached_tokens=sum(outcome.num_cached_tokens for outcome in done),
            has_usage=all(outcome.usage_output_tokens is not None for outcome in done),
            requests_per_s=_rate(len(done), duration_s),
            output_tokens_per_s=_rate(num_output_tokens, duration_s),
            total_tokens_per_s=_rate(num_prompt_tokens + num_output_tokens, duration_s),
            ttft_ms=Distribution.of([outcome.ttft_s for outcome in done]),
            itl_ms=Distribution.of([gap for outcome in done for gap in outcome.itl_s]),
            tpot_ms=Distribution.of([tpot for outcome in done if (tpot := outcome.tpot_s) is not None]),
            e2e_ms=Distribution.of([outcome.e2e_s for outcome in done]),
            send_delay_ms=Distribution.of([outcome.send_delay_s for outcome in outcomes]) if is_scheduled else None,
            errors=count_errors(outcomes),
        )

    def as_dict(self) -> dict[str, object]:
        """The numbers as JSON has them."""
        return asdict(self)


def count_errors(outcomes: Sequence[Outcome]) -> tuple[ErrorCount, ...]:
    """Counts failures by kind, the most frequent first."""
    messages: dict[str, list[str]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.error is not None:
            messages[outcome.error.kind].append(str(outcome.error))
    counts = [ErrorCount(kind, len(texts), texts[0]) for kind, texts in messages.items()]
    return tuple(sorted(counts, key=lambda count: -count.count))


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
