"""The numbers of a local run, from timings made by hand."""

from __future__ import annotations

import json

import pytest

from pipelines.benchmark.local_report import LocalReport, LocalResult, as_markdown
from pipelines.benchmark.local_settings import LocalSettings, LocalTest
from pipelines.benchmark.machine import Machine, measure_float32, measure_read

PROMPT = LocalResult(LocalTest("prompt", 100, 0, 2), [[0.5, 0.5], [1.0, 1.0], [0.25, 0.75]], num_operations=3e9)
GENERATE = LocalResult(
    LocalTest("generate", 4, 8192, 2), [[0.25, 0.5, 0.25, 1.0], [0.25, 0.25, 0.25, 0.25]], bytes_read=6e9
)
MODEL = {"name": "m", "encoding": "float32", "devices": "cpu", "num_values": 10**9, "bytes": 4 * 10**9}
VERSIONS = {"graph-pipelines": "0.1", "max": "26.7"}


def report(**changes: object) -> LocalReport:
    fields = {"settings": LocalSettings(), "machine": Machine("p", 2, 8e9, 12e9), "model": MODEL, "versions": VERSIONS}
    return LocalReport(**{**fields, "results": [PROMPT, GENERATE], **changes})  # type: ignore[arg-type]


def test_speeds() -> None:
    assert PROMPT.tokens_per_s == [200, 100, 200]
    assert (PROMPT.time_to_first_token_s, PROMPT.step_s) == (1.0, None)
    assert PROMPT.operations_per_s == 3e9 and PROMPT.read_bytes_per_s is None
    assert GENERATE.tokens_per_s == [4, 8]
    assert (GENERATE.time_to_first_token_s, GENERATE.step_s) == (None, 0.25)
    assert GENERATE.read_bytes_per_s == 4e9 and GENERATE.operations_per_s is None


def test_shares_of_what_the_processor_can_do() -> None:
    made = report()
    assert (made.bandwidth_share(GENERATE), made.bandwidth_share(PROMPT)) == (0.5, None)
    assert (made.arithmetic_share(PROMPT), made.arithmetic_share(GENERATE)) == (0.25, None)


def test_products_in_int8_have_no_share_of_float32() -> None:
    made = report(has_float32_products=False)
    assert made.arithmetic_share(PROMPT) is None and made.bandwidth_share(GENERATE) == 0.5
    assert [line[-1] for line in made.lines()] == ["GFLOP/s", "3", ""]


def test_a_machine_that_was_not_measured_has_no_shares() -> None:
    made = report(machine=Machine("p", 2))
    assert made.bandwidth_share(GENERATE) is None and made.arithmetic_share(PROMPT) is None
    assert "GB/s" not in made.title()[1]


def test_the_table() -> None:
    assert as_markdown(report().lines()).splitlines() == [
        "| test | depth | batch | tokens/s | min to max | ms/step | first token, ms | GB/s | GFLOP/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| pp100 | 0 | 2 | 200.0 | 100.0 to 200.0 |  | 1,000 |  | 3 (25%) |",
        "| tg4 | 8,192 | 2 | 6.0 | 4.0 to 8.0 | 250.0 |  | 4.0 (50%) |  |",
    ]


def test_columns_that_nothing_fills_are_left_out() -> None:
    assert report(results=[GENERATE]).lines()[0] == [
        "test",
        "depth",
        "batch",
        "tokens/s",
        "min to max",
        "ms/step",
        "GB/s",
    ]


def test_json_has_every_sample() -> None:
    found = json.loads(json.dumps(report().as_dict()))
    assert found["version"] == "0.1" and found["machine"]["read_bytes_per_s"] == 8e9
    prompt, generate = found["results"]
    assert prompt["samples_s"] == PROMPT.repetitions and prompt["name"] == "pp100"
    assert prompt["tokens_per_s"] == {"median": 200, "min": 100, "max": 200}
    assert (prompt["time_to_first_token_ms"], prompt["step_ms"], prompt["arithmetic_share"]) == (1000, None, 0.25)
    assert (generate["step_ms"], generate["bandwidth_share"], generate["kind"]) == (250, 0.5, "generate")


def test_what_this_processor_can_do_is_measured() -> None:
    assert 1e8 < measure_read(0.01, 2**24) < 1e13
    assert 1e8 < measure_float32(0.01, 128) < 1e14
    assert Machine.describe().processor and Machine.describe().num_cores > 0


@pytest.mark.parametrize("result", [PROMPT, GENERATE])
def test_each_result_fills_its_own_columns(result: LocalResult) -> None:
    assert all(cell for cell in report(results=[result]).lines()[1])
