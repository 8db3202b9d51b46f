"""benchmarks/compare.py without its peers: rounds, ratios, and systems that can't run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")

import compare
import compare_worker
from compare_models import ROWS, Models, NotAvailable, Row
from compare_process import Worker
from compare_report import Measurement, plot, table
from fake_model import assert_idle, new_pipeline, prompts_of

MEASUREMENT = Measurement(
    "google__gemma", "8-bit", "decode", {"pipelines": [30, 20, 10], "OpenVINO": [10, 20, 30], "llama.cpp": [19, 19, 19]}
)


class FakeWorker:
    """Answers with the number of the call, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def open(self, prompts: list[list[int]]) -> float:
        return self._called("open", prompts)

    def decode(self, num_rows: int, num_new: int) -> float:
        return self._called("decode", num_rows, num_new)

    def close_rows(self) -> None:
        self._called("close")

    def close(self) -> None:
        raise AssertionError("only a system that fails is ended in a round")

    def _called(self, *call: Any) -> float:
        self.calls.append(call)
        return float(len(self.calls))


def test_the_ratio_is_the_median_of_the_rounds_ratios_to_the_best_peer() -> None:
    assert MEASUREMENT.medians == {"pipelines": 20, "OpenVINO": 20, "llama.cpp": 19}
    assert MEASUREMENT.best_peer == "OpenVINO"
    assert MEASUREMENT.ratio == 1.0  # of 3, 1 and 1/3
    assert Measurement("", "", "", {"pipelines": [6, 9], "OpenVINO": [2, 9]}).ratio == 2.0
    assert Measurement("", "", "", {"pipelines": [1]}).ratio is None
    assert Measurement("", "", "", {"OpenVINO": [1]}).ratio is None


def test_the_table() -> None:
    assert table([MEASUREMENT], ["pipelines", "OpenVINO", "llama.cpp", "transformers"]).splitlines() == [
        "google__gemma, tokens/s",
        "",
        "| | | pipelines | OpenVINO | llama.cpp | transformers | pipelines to the best peer |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 8-bit | decode | 20.0 | 20.0 | 19.0 |  | 1.00x OpenVINO |",
    ]


def test_the_drawing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot([MEASUREMENT], ["pipelines", "OpenVINO", "llama.cpp"], tmp_path / "out.svg")
    text = (tmp_path / "out.svg").read_text()
    assert "<svg" in text and text.count("<path") > 3


def test_the_first_round_does_not_count_and_prompts_are_the_same_for_all() -> None:
    workers: dict[str, Any] = {"a": FakeWorker(), "b": FakeWorker()}
    found = compare.measure_prompt(workers, 20, 3, 2)
    assert found == {
        "prompt of 20": {"a": [4.0, 7.0], "b": [4.0, 7.0]},
        "decode after 20": {"a": [5.0, 8.0], "b": [5.0, 8.0]},
    }
    assert workers["a"].calls == workers["b"].calls
    opened = [call[1] for call in workers["a"].calls if call[0] == "open"]
    assert [[len(row) for row in rows] for rows in opened] == [[20]] * 3
    assert opened[0] != opened[1] != opened[2]


def test_a_deep_prompt_is_computed_once_for_all_rounds() -> None:
    workers: dict[str, Any] = {"a": FakeWorker()}
    assert compare.measure_decode(workers, 30, 4, 5, 3) == {"decode 4 after 30": {"a": [3.0, 4.0, 5.0]}}
    (_, prompts), *decodes, end = workers["a"].calls
    assert [len(prompt) for prompt in prompts] == [30] * 4
    assert decodes == [("decode", 4, 5)] * 4 and end == ("close",)


def test_a_system_that_is_not_installed_is_left_out_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "q8_0.gguf").touch()
    notes: list[str] = []
    pythons = {"llama.cpp": Path(sys.executable), "OpenVINO": Path(sys.executable), "transformers": None}
    with compare.started(Models(tmp_path, None), "8-bit", pythons, 64, notes.append) as workers:
        assert not workers
    assert [note.partition(": ")[0] for note in notes] == [f"8-bit, {name} is left out" for name in pythons]
    assert "there is no --export-python" in notes[1] and "no interpreter was given" in notes[2]
    with compare.started(Models(tmp_path, None), "8-bit", {"transformers": Path("x")}, 64, notes.append):
        assert notes[-1] == "8-bit, transformers is left out: it has no such encoding"


def test_a_worker_answers_a_line_of_json_for_each_request(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\nimport sys, json\nprint(json.dumps(sys.argv[2:]), flush=True)\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        '    answer = {"open": {"seconds": 2.0}, "decode": {"steps": [0.5, 0.25, 9]}, "close": {}}\n'
        "    print(json.dumps(answer[next(iter(asked))]), flush=True)\n"
    )
    script.chmod(0o755)
    worker = Worker(script, "system", tmp_path, "encoding", 77)
    assert worker.settings == ["system", str(tmp_path), "encoding", "77"]  # type: ignore[comparison-overlap]
    assert worker.open([[1, 2, 3], [4, 5, 6]]) == 3.0
    assert worker.decode(4, 3) == 8.0  # four rows in the median step
    worker.close_rows()
    worker.close()


def test_a_system_that_fails_in_a_round_is_left_out_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(FakeWorker):
        def decode(self, num_rows: int, num_new: int) -> float:
            if len(self.calls) > 3:
                raise NotAvailable("no memory")
            return super().decode(num_rows, num_new)

        def close(self) -> None:
            self.calls.append(("ended",))

    failing = Failing()
    workers: dict[str, Any] = {"a": failing, "b": FakeWorker()}
    found = compare.measure_prompt(workers, 20, 3, 2)
    assert found["decode after 20"] == {"b": [5.0, 8.0]} and list(workers) == ["b"]
    assert failing.calls[-1] == ("ended",)
    assert capsys.readouterr().err == "a is left out: no memory\n"
    assert compare.measure_prompt({}, 20, 3, 2) == {}


def test_our_side_opens_rows_adds_a_token_to_each_and_drops_them() -> None:
    system = object.__new__(compare_worker.Pipelines)  # without the model that it would load
    system.pipe, system.rows = new_pipeline(max_batch_tokens=64), []
    for _ in range(2):
        prompts = prompts_of(40, 90)
        assert compare_worker.answer(system, {"open": prompts})["seconds"] > 0
        before = [len(row.tokens) for row in system.rows]
        assert all(count > len(prompt) for count, prompt in zip(before, prompts, strict=True))
        assert len(compare_worker.answer(system, {"decode": 5})["steps"]) == 5
        assert [len(row.tokens) for row in system.rows] == [count + 5 for count in before]
        assert compare_worker.answer(system, {"close": True}) == {}
        assert_idle(system.pipe)


def test_each_file_of_a_row_is_its_own(tmp_path: Path) -> None:
    models = Models(tmp_path, None)
    for row in ROWS.values():
        (tmp_path / f"{row.llama_cpp}.gguf").touch()
    ggufs = {models.model_of("llama.cpp", row)[0] for row in ROWS.values()}
    assert len(ggufs) == len({row.llama_cpp for row in ROWS.values()})
    folder = tmp_path / "openvino-int4-all-layers"
    folder.mkdir()
    assert models.model_of("OpenVINO", ROWS["4-bit"])[0] == folder
    assert models.model_of("pipelines", ROWS["4-bit"]) == (tmp_path, "q4_0+q4_0")
    with pytest.raises(NotAvailable, match="it has no such encoding"):
        models.model_of("OpenVINO", Row("x", "x", None))


def test_prompts_are_token_ids_that_json_takes() -> None:
    made = compare.prompts(12, 3, 5)
    assert json.loads(json.dumps(made)) == made == compare.prompts(12, 3, 5)
    assert [len(row) for row in made] == [12] * 3 and made[0] != made[1]
