"""The numbers of a report, from timings made by hand."""

from __future__ import annotations

import pytest

from pipelines.benchmark.outcome import Outcome, RequestError, RequestPlan
from pipelines.benchmark.report import Distribution, Report


def outcome(*chunk_times_s: float, due_s: float | None = None, sent_s: float = 0.0, **fields: float | None) -> Outcome:
    """A request whose stream ended with its last chunk."""
    made = Outcome(RequestPlan("x", 8, 10, due_s), sent_s, list(chunk_times_s), chunk_times_s[-1])
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_percentiles_are_interpolated_between_the_nearest_ranks() -> None:
    values = Distribution.of([0.004, 0.001, 0.003, 0.002, 0.005])
    assert values.count == 5
    assert [values.mean, values.p50, values.p90, values.p99] == pytest.approx([3.0, 3.0, 4.6, 4.96])
    assert Distribution.of([0.25]) == Distribution(1, 250.0, 250.0, 250.0, 250.0)
    assert Distribution.of([]) == Distribution(0, None, None, None, None)


def test_latencies_of_one_request() -> None:
    report = Report.of([outcome(0.5, 0.6, 0.9, sent_s=0.1, usage_prompt_tokens=12, usage_output_tokens=3)], 2.0)
    assert report.ttft_ms.mean == pytest.approx(400)
    assert report.itl_ms.count == 2
    assert report.itl_ms.mean == pytest.approx(200)
    assert report.tpot_ms.mean == pytest.approx(200)
    assert report.e2e_ms.mean == pytest.approx(800)
    assert report.send_delay_ms is None
    assert (report.num_prompt_tokens, report.num_output_tokens) == (12, 3)
    assert (report.requests_per_s, report.output_tokens_per_s, report.total_tokens_per_s) == (0.5, 1.5, 7.5)


def test_with_several_tokens_a_chunk_itl_is_a_chunks_and_tpot_a_tokens() -> None:
    report = Report.of([outcome(1.0, 1.4, 1.8, usage_prompt_tokens=1, usage_output_tokens=9)], 2.0)
    assert report.itl_ms.mean == pytest.approx(400)
    assert report.tpot_ms.mean == pytest.approx(100)


def test_the_end_is_the_last_chunk_with_a_choice() -> None:
    """It may have a finish_reason and no text."""
    report = Report.of([outcome(1.0, 2.0, end_s=2.5, usage_prompt_tokens=1, usage_output_tokens=4)], 3.0)
    assert report.e2e_ms.mean == pytest.approx(2500)
    assert report.tpot_ms.mean == pytest.approx(500)
    assert report.itl_ms.mean == pytest.approx(1000)


def test_an_answer_of_one_token_has_no_time_per_output_token() -> None:
    report = Report.of([outcome(1.0, usage_prompt_tokens=1, usage_output_tokens=1)], 1.0)
    assert (report.tpot_ms.count, report.tpot_ms.mean, report.itl_ms.count) == (0, None, 0)
    assert report.ttft_ms.mean == pytest.approx(1000)


def test_latency_counts_from_when_a_request_was_due() -> None:
    late = outcome(3.0, 3.5, due_s=1.0, sent_s=2.0, usage_prompt_tokens=1, usage_output_tokens=2)
    report = Report.of([late], 4.0)
    assert report.ttft_ms.mean == pytest.approx(2000)
    assert report.e2e_ms.mean == pytest.approx(2500)
    assert report.send_delay_ms is not None and report.send_delay_ms.mean == pytest.approx(1000)


def test_without_usage_chunks_and_calibration_are_counted() -> None:
    report = Report.of([outcome(1.0, 2.0, 3.0)], 3.0)
    assert not report.has_usage
    assert (report.num_prompt_tokens, report.num_output_tokens) == (10, 3)
    assert report.tpot_ms.mean == pytest.approx(1000)


def test_failures_have_no_part_in_latencies_and_throughput() -> None:
    ok = outcome(1.0, usage_prompt_tokens=5, usage_output_tokens=5)
    failures = [
        Outcome(RequestPlan("x", 8), 0.0, [9.0], 9.0, error=RequestError(kind, message))
        for kind, message in (("HTTP 429", "full"), ("timeout", "late"), ("HTTP 429", "still full"))
    ]
    report = Report.of([*failures, ok], 1.0, num_unfinished=2)
    assert (report.num_requests, report.num_completed, report.num_failed, report.num_unfinished) == (6, 1, 3, 2)
    assert [(e.kind, e.count, e.example) for e in report.errors] == [("HTTP 429", 2, "full"), ("timeout", 1, "late")]
    assert (report.ttft_ms.count, report.num_output_tokens, report.requests_per_s) == (1, 5, 1.0)


def test_a_load_of_nothing() -> None:
    report = Report.of([], 0.0, num_unfinished=3)
    assert (report.num_completed, report.requests_per_s, report.ttft_ms.count) == (0, 0.0, 0)
