"""`pipelines benchmark` without --url: its options, its output, and the way from one to the other on the fake model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import Caller
from fake_model import WINDOW, FakeModel
from kv_caches import new_cache

import cli
from pipelines import PipelineConfig
from pipelines.benchmark.local import LocalBenchmark, warm_up
from pipelines.benchmark.local_report import LocalReport, LocalResult
from pipelines.benchmark.local_rows import pages_needed
from pipelines.benchmark.local_settings import LocalSettings, LocalTest
from pipelines.benchmark.machine import Machine
from pipelines.commands.benchmark_options import LOCAL_OPTIONS
from pipelines.errors import InputError
from pipelines.stages import NullStages

PAGE = Path(cli.__file__).parent / "docs" / "benchmarking.md"
MACHINE = Machine("a processor", 2, 1e10, 1e11)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    monkeypatch.setenv("PIPELINES_API_KEY", "of a server")  # it may be set for good, and refuses nothing
    return Caller(capsys, monkeypatch)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[LocalBenchmark]:
    """Lets the command prepare, and measure the fake model in place of the one that it would compile."""
    made = []

    def run(self: LocalBenchmark, stages: Any = None) -> LocalReport:
        made.append(self)
        sizes = pages_needed(new_cache(window=WINDOW).params, list(self.settings.tests()), 256)
        cache = new_cache(**sizes, window=WINDOW)  # type: ignore[arg-type]
        results = list(self.measure(FakeModel(sizes), cache, stages))
        return LocalReport(self.settings, self.machine, self._describe_model(), {"graph-pipelines": "1"}, results)

    monkeypatch.setattr(LocalBenchmark, "run", run)
    monkeypatch.setattr(Machine, "measure", lambda: MACHINE)
    return made


LENGTHS = ("--prompt-length", "40", "--generate-length", "6", "--depth", "0", "--depth", "200", "--batch-size", "2")


def test_the_tests_of_the_command_line_are_measured(prepared: list[LocalBenchmark], call: Caller) -> None:
    encoding = ("--quantization-encoding", "float32", "--max-batch-tokens", "64")
    result = call("benchmark", *LENGTHS, *encoding, "--repetitions", "3", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [(each["name"], each["depth"], each["batch_size"]) for each in found["results"]] == [
        ("pp40", 0, 2),
        ("tg6", 0, 2),
        ("pp40", 200, 2),
        ("tg6", 200, 2),
    ]
    assert [len(each["samples_s"]) for each in found["results"]] == [3] * 4
    assert [[len(steps) for steps in each["samples_s"]] for each in found["results"]] == [[2] * 3, [6] * 3] * 2
    for each in found["results"]:
        of_prompt = each["kind"] == "prompt"
        for name in ("arithmetic_share", "operations_per_s", "time_to_first_token_ms"):
            assert (each[name] is not None) == of_prompt
        for name in ("bandwidth_share", "bytes_read_per_s", "step_ms"):
            assert (each[name] is not None) != of_prompt
    assert found["model"]["encoding"] == "float32" and found["machine"]["processor"] == MACHINE.processor
    (benchmark,) = prepared
    config = benchmark.prepared.config
    assert (config.max_length, config.max_batch_size, config.max_batch_tokens) == (240, 2, 64)


def test_the_table_and_its_markdown(prepared: list[LocalBenchmark], call: Caller) -> None:
    table = call("benchmark", *LENGTHS, "--repetitions", "1").out.splitlines()
    assert [line.split()[0] for line in table if line.strip()][-4:] == ["pp40", "tg6", "pp40", "tg6"]
    markdown = call("benchmark", *LENGTHS, "--repetitions", "1", "--markdown").out.splitlines()
    assert [line.split()[1] for line in markdown if line.startswith("|")][2:] == ["pp40", "tg6", "pp40", "tg6"]
    assert table[1].startswith("2 cores of a processor, which read 10.0 GB/s and compute 100 GFLOP/s in float32")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--concurrency", "4"), "--concurrency is for a server: give --url too"),
        (("--api-key", "x"), "--api-key is for a server: give --url too"),
        (("--no-ignore-eos",), "--ignore-eos is for a server: give --url too"),
        (("--url", "http://localhost:1", "--depth", "4"), "--depth is for a model in this process: leave out it or"),
        (("--url", "http://localhost:1", "--devices", "cpu"), "--devices is for a model in this process: leave out"),
        (("--url", "http://localhost:1", "--repetitions", "5"), "--repetitions is for a model in this process"),
        (("--json", "--markdown"), "--json and --markdown are two forms of the output"),
        (("--batch-size", "0"), "--batch-size is 0: give a number from 1 to 4096"),
        (("--depth", "10000000"), "max_length"),
        (("--seed", "-3"), "--seed is -3"),
        (("--max-length", "5"), "No such option"),
    ],
)
def test_options_that_make_no_sense_together(options: tuple[str, ...], words: str, call: Caller) -> None:
    line = [line for line in call("benchmark", *options).err.splitlines() if not line.startswith("processor ...")]
    assert words in line[-1] and line[-1].startswith("error: ")


def test_a_cache_without_room_for_the_rows_is_found_before_the_model_is_loaded() -> None:
    config = PipelineConfig(kv_cache_memory=2**23)
    settings = LocalSettings(depths=(256,), batch_sizes=(8,))
    with pytest.raises(InputError, match="no room for 8 rows of 768 tokens: lower --batch-size or --depth"):
        LocalBenchmark.prepare(settings, config, NullStages())


def test_the_warm_up_is_short_and_at_the_same_depth() -> None:
    assert warm_up(LocalTest("generate", 128, 512, 4)) == LocalTest("generate", 4, 512, 4)
    assert warm_up(LocalTest("prompt", 100, 0, 1)) == LocalTest("prompt", 100, 0, 1)


def test_the_page_has_the_options_and_the_columns() -> None:
    text = PAGE.read_text()
    local = [p for p in cli.benchmark.params if p.name in LOCAL_OPTIONS]
    assert len(local) == len(LOCAL_OPTIONS)
    assert not [option.opts[0] for option in local if f"`{option.opts[0]}`" not in text]
    results = [
        LocalResult(LocalTest("prompt", 1, 0, 1), [[1.0]], num_operations=1.0),
        LocalResult(LocalTest("generate", 1, 0, 1), [[1.0]], bytes_read=1.0),
    ]
    model = {"name": "", "encoding": "", "devices": "", "num_values": 1, "bytes": 1}
    columns = LocalReport(LocalSettings(), MACHINE, model, {}, results).lines()[0]
    assert not [name for name in columns if f"| {name} |" not in text]
