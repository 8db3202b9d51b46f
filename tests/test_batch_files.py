"""Files of a batch, and what is to be done after a kill: examples/batch_files.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from batch_files import ROUTES, append_lines, done_ids, line_of, read_requests, refusal_of, result_of, to_do


def line(custom_id: str, **more: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ROUTES[0], "body": {"messages": []}} | more)


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(each + "\n" for each in lines))
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    first = write(tmp_path / "a.jsonl", *(line(f"a{i}") for i in range(5)))
    return [first, write(tmp_path / "b.jsonl", *(line(f"b{i}") for i in range(3)))]


def answer(inputs: list[Path], output: Path, count: int | None = None) -> list[str | None]:
    """Answers the first of what is to be done; returns what it was."""
    requests = to_do(inputs, output)[:count]
    append_lines(output, [line_of(result_of(request, 200, {})) for request in requests])
    return [request.custom_id for request in requests]


def test_killed_run_goes_on_where_it_stopped(inputs: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert answer(inputs, output, 2) == ["a0", "a1"]
    assert answer(inputs, output, 4) == ["a2", "a3", "a4", "b0"]
    assert answer(inputs, output) == ["b1", "b2"]
    assert answer(inputs, output) == []
    names = [json.loads(each)["custom_id"] for each in output.read_text().splitlines()]
    assert sorted(names) == [*(f"a{i}" for i in range(5)), *(f"b{i}" for i in range(3))]


def test_kill_at_any_byte_loses_and_repeats_nothing(inputs: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    answer(inputs, output, 3)
    written = output.read_bytes()
    for end in range(len(written) + 1):
        output.write_bytes(written[:end])
        answer(inputs, output)
        names = [json.loads(each)["custom_id"] for each in output.read_text().splitlines()]
        assert len(names) == len(set(names)) == 8


def test_line_separators_of_unicode_cut_no_result(inputs: list[Path], tmp_path: Path) -> None:
    (request, *_) = to_do(inputs, tmp_path / "out")
    append_lines(tmp_path / "out", [line_of(result_of(request, 200, {"text": "\u2028\x85\ud800"}))])
    assert done_ids(tmp_path / "out") == {request.id}


def test_same_line_twice_is_two_requests(tmp_path: Path) -> None:
    requests = list(read_requests(write(tmp_path / "a", line("x"), line("x"))))
    assert len({request.id for request in requests}) == 2
    assert requests[0].error is None
    assert "earlier line" in str(requests[1].error)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "no JSON"),
        ("\udcff", "no JSON"),
        ("[1]", "no JSON object"),
        ("{}", "custom_id"),
        (line("x", url="/v1/files"), "url"),
        (line("x", method="GET"), "method"),
        (line("x", body=None), "body"),
        (line("x", body={"stream": True}), "stream"),
    ],
)
def test_line_that_is_no_request_is_an_error_of_its_own(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "a"
    path.write_bytes("\n".join([line("good"), "", text]).encode("utf-8", "surrogateescape"))
    good, bad = read_requests(path)
    assert good.error is None
    assert error in str(bad.error)
    result = refusal_of(bad)
    assert result["response"] is None
    assert error in result["error"]["message"]


def test_changed_input_is_refused(inputs: list[Path], tmp_path: Path) -> None:
    answer(inputs, tmp_path / "out")
    write(inputs[0], line("a0"), line("changed"))
    with pytest.raises(click.UsageError, match=r"out has a result of a\.jsonl:2"):
        to_do(inputs, tmp_path / "out")


def test_longer_input_is_continued(inputs: list[Path], tmp_path: Path) -> None:
    answer(inputs, tmp_path / "out")
    with inputs[1].open("a") as file:
        file.write(line("b3") + "\n")
    assert answer(inputs, tmp_path / "out") == ["b3"]


def test_inputs_of_one_name_are_refused(inputs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(click.UsageError, match="same name"):
        to_do([*inputs, write(tmp_path / "sub" / "a.jsonl")], tmp_path / "out")


def test_other_file_is_no_output(inputs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="line 1 is no result"):
        to_do(inputs, inputs[1])
    assert len(inputs[1].read_text().splitlines()) == 3
