"""`pipelines benchmark` against a server with the fake model, and against servers that fail."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Caller, Result, read_until, started
from fake_model import VOCAB_SIZE, FakeModel, new_pipeline
from serving import MODEL, ChatTokenizer, LiveServer, serving
from stub_server import DONE, STREAM, StubServer, as_json, chunk, stub_server, usage

import cli
from pipelines.text.prompts import PromptEncoder
from pipelines.text_generation import TextGenerationPipeline

pytestmark = pytest.mark.slow  # together they take seconds

LATENCIES = ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")
KEYS = {
    "version",
    "settings",
    "calibration",
    "num_requests",
    "num_completed",
    "num_failed",
    "num_unfinished",
    "duration_s",
    "num_prompt_tokens",
    "num_output_tokens",
    "num_cached_tokens",
    "has_usage",
    "requests_per_s",
    "output_tokens_per_s",
    "total_tokens_per_s",
    *LATENCIES,
    "send_delay_ms",
    "errors",
    "warmup_errors",
    "notes",
}


PAGE = Path(cli.__file__).parent / "docs" / "benchmarking.md"


class WordTokenizer(ChatTokenizer):
    """One token a word."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1 + sum(map(ord, word)) % (VOCAB_SIZE - 4) for word in text.split()]

    def min_num_tokens(self, text: str) -> int:
        return len(text.split())


def word_pipeline() -> TextGenerationPipeline:
    pipe = new_pipeline(max_batch_tokens=64, enable_prefix_caching=True)
    assert pipe.config.max_length is not None
    prompts = PromptEncoder(WordTokenizer(), VOCAB_SIZE, pipe.config.max_length, False, None)  # type: ignore[arg-type]
    return TextGenerationPipeline(pipe.config, pipe.model, pipe.cache, prompts)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with serving(word_pipeline()) as server:
        yield server


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with stub_server() as server:
        yield server


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    monkeypatch.delenv("PIPELINES_API_KEY", raising=False)
    return Caller(capsys, monkeypatch)


def measured(result: Result, code: int = 0) -> dict[str, Any]:
    """The one JSON object of a result."""
    assert result.code == code, result.err
    (line,) = result.out.splitlines()
    found = json.loads(line)
    assert found.keys() == KEYS
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("arrivals", [(), ("--concurrency", "2"), ("--request-rate", "500")])
def test_requests_and_tokens_are_counted(
    endpoint: str, arrivals: tuple[str, ...], server: LiveServer, call: Caller
) -> None:
    options = ("--num-requests", "6", "--prompt-tokens", "40", "--output-tokens", "7", "--warmup", "2")
    result = call("benchmark", "--url", server.url, "--endpoint", endpoint, *options, *arrivals, "--json")
    found = measured(result)
    assert (found["num_requests"], found["num_completed"], found["num_failed"], found["num_unfinished"]) == (6, 6, 0, 0)
    assert (found["num_prompt_tokens"], found["num_output_tokens"]) == (6 * 40, 6 * 7)
    assert (found["settings"]["model"], found["calibration"], found["has_usage"]) == (MODEL, "tokenize", True)
    assert found["settings"]["prompt_tokens"] == [40, 40]
    assert [found[name]["count"] for name in ("ttft_ms", "tpot_ms", "e2e_ms")] == [6, 6, 6]
    assert 6 <= found["itl_ms"]["count"] <= 6 * 6
    assert all(found[name]["p50"] <= found[name]["p90"] <= found[name]["p99"] for name in LATENCIES)
    assert found["ttft_ms"]["mean"] <= found["e2e_ms"]["mean"]
    assert (found["send_delay_ms"] is not None) == ("--request-rate" in arrivals)
    assert found["errors"] == found["warmup_errors"] == found["notes"] == []
    stages = [line.partition(" ...")[0] for line in result.err.splitlines()]
    assert stages == ["prompts", "warm-up", "6 requests"]


def test_ranges_of_tokens(server: LiveServer, call: Caller) -> None:
    options = ("--num-requests", "20", "--prompt-tokens", "5:60", "--output-tokens", "1:9", "--seed", "4", "--json")
    first, again = (measured(call("benchmark", "--url", f"{server.url}/v1", *options)) for _ in range(2))
    counts = ("num_prompt_tokens", "num_output_tokens")
    assert [first[name] for name in counts] == [again[name] for name in counts]
    assert 20 * 5 < first["num_prompt_tokens"] < 20 * 60 and 20 < first["num_output_tokens"] < 20 * 9


def test_prefixes_are_reused_if_prompts_share_them(server: LiveServer, call: Caller) -> None:
    options = ("benchmark", "--url", server.url, "--num-requests", "5", "--prompt-tokens", "300", "--json")
    assert measured(call(*options))["num_cached_tokens"] == 0
    shared = measured(call(*options, "--shared-prefix-tokens", "300"))
    assert shared["num_prompt_tokens"] == 5 * 600
    assert shared["num_cached_tokens"] >= 5 * 256


def test_prompts_of_a_file(server: LiveServer, call: Caller, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('"one two three"\n{"prompt": "four five", "output_tokens": 3}\n')
    options = ("benchmark", "--url", server.url, "--prompts", str(path), "--output-tokens", "9", "--json")
    found = measured(call(*options))
    assert (found["num_completed"], found["num_prompt_tokens"], found["num_output_tokens"]) == (2, 5, 12)
    assert found["calibration"] == "none" and found["notes"] == []
    found = measured(call(*options, "--num-requests", "5"))
    assert (found["num_completed"], found["num_output_tokens"]) == (5, 9 + 3 + 9 + 3 + 9)
    assert "repeat" in found["notes"][0]


def test_the_warm_up_does_not_teach_a_prefix_cache_the_prompts_of_a_file(
    stub: StubServer, call: Caller, tmp_path: Path
) -> None:
    (tmp_path / "prompts").write_text("one\ntwo\n")
    stub.routes["/v1/completions"] = lambda _: (200, STREAM, [chunk("a", "stop"), b""])
    options = ("benchmark", "--url", stub.url, "--prompts", str(tmp_path / "prompts"), "--concurrency", "1", "--json")
    found = measured(call(*options, "--warmup", "3"))
    sent = [body["prompt"] for body in stub.bodies("/v1/completions")]
    assert sent == ["0: one", "1: two", "2: one", "one", "two"]
    assert found["num_prompt_tokens"] == 0 and "the file's prompts as none" in found["notes"][0]


def test_the_table(server: LiveServer, call: Caller) -> None:
    options = ("--num-requests", "3", "--output-tokens", "4", "--request-rate", "500", "--seed", "5")
    result = call("benchmark", "--url", server.url, *options)
    assert result.code == 0
    assert f"{MODEL} at {server.url}, completions, 500 arrivals/s" in result.out
    rows = [line.split() for line in result.out.splitlines()]
    assert ["ms", "mean", "p50", "p90", "p99"] in rows
    for label in (
        "time to first token",
        "inter-token latency",
        "time per output token",
        "end-to-end latency",
        "send delay",
    ):
        (row,) = [row for row in rows if row[:-4] == label.split()]
        assert all(float(cell.replace(",", "")) >= 0 for cell in row[-4:])
    assert ["tokens", "768", "prompt,", "12", "output"] in rows
    assert ["seed", "5"] in rows and "\x1b" not in result.out
    assert ["requests", "3", "completed,", "0", "failed,"] in [row[:5] for row in rows]


def test_failures_are_counted_and_make_the_exit_code_1(server: LiveServer, call: Caller) -> None:
    options = ("--num-requests", "4", "--prompt-tokens", "2000", "--warmup", "0")
    result = call("benchmark", "--url", server.url, *options, "--json")
    found = measured(result, code=1)
    (error,) = found["errors"]
    assert (error["kind"], error["count"], found["num_failed"]) == ("HTTP 400", 4, 4)
    assert "1000" in error["example"]
    assert found["ttft_ms"] == {"count": 0, "mean": None, "p50": None, "p90": None, "p99": None}
    table = call("benchmark", "--url", server.url, *options)
    assert table.code == 1 and "HTTP 400" in table.out and "4 failed" in table.out


def test_failures_of_some_requests_do_not_touch_the_others(stub: StubServer, call: Caller) -> None:
    good = (200, STREAM, [chunk("a"), chunk("b", "length"), usage(9, 2), DONE, b""])
    answers = iter(
        [
            good,
            as_json({"error": {"message": "[bold]full[/bold]"}}, 429),
            (200, STREAM, [chunk("a")]),
            as_json({"error": {"message": "broken"}}, 500),
            (200, STREAM, [b"data: garbage\n\n", b""]),
            good,
        ]
    )
    stub.routes["/v1/completions"] = lambda body: next(answers) if body.get("stream") else as_json({})
    options = ("--num-requests", "5", "--concurrency", "1", "--prompt-tokens", "9")
    result = call("benchmark", "--url", stub.url, *options)
    assert result.code == 1
    assert "1 completed, 4 failed" in result.out
    for kind in ("HTTP 429", "cut stream", "HTTP 500", "bad event"):
        (row,) = [
            line.split() for line in result.out.splitlines() if line.split()[:-1][: len(kind.split())] == kind.split()
        ]
        assert row[2] == "1"
    assert "[bold]full[/bold]" in result.out
    assert "a word for each token" in result.out  # it has neither /tokenize nor usage


def test_a_warm_up_that_fails_is_told_and_makes_the_exit_code_1(stub: StubServer, call: Caller) -> None:
    answers = iter([as_json({}, 500), *[(200, STREAM, [chunk("a"), chunk("b", "stop"), DONE, b""])] * 2])
    stub.routes["/v1/completions"] = lambda body: next(answers) if body.get("stream") else as_json({})
    found = measured(call("benchmark", "--url", stub.url, "--num-requests", "2", "--json"), code=1)
    assert (found["num_completed"], found["num_failed"], found["has_usage"]) == (2, 0, False)
    assert found["warmup_errors"] == [{"kind": "HTTP 500", "count": 1, "example": "{}"}]
    assert [note for note in found["notes"] if "warm-up" in note] == ["1 of the warm-up failed, HTTP 500: {}"]
    assert (found["num_prompt_tokens"], found["num_output_tokens"]) == (2 * 256, 4)
    assert any("a chunk counts as one output token" in note for note in found["notes"])


def test_the_key_is_sent_and_not_shown(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(word_pipeline(), api_key="the-key") as server:
        options = ("benchmark", "--url", server.url, "--num-requests", "1", "--output-tokens", "2", "--json")
        assert "HTTP 401: give the server's --api-key" in call(*options).error()
        monkeypatch.setenv("PIPELINES_API_KEY", "the-key")
        result = call(*options)
        assert measured(result)["num_completed"] == 1
        assert "the-key" not in result.out + result.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--concurrency", "2"), "--concurrency is for a server: give --url too"),
        (("--url", "localhost:8000"), "--url is 'localhost:8000': write an address"),
        (("--url", "http://localhost", "--prompt-tokens", "9:3"), "--prompt-tokens is '9:3'"),
        (("--url", "http://localhost", "--output-tokens", "none"), "--output-tokens is 'none'"),
        (("--url", "http://localhost", "--request-rate", "-1"), "--request-rate is -1.0"),
        (("--url", "http://localhost", "--num-requests", "0"), "--num-requests is 0"),
        (("--url", "http://localhost", "--extra-body", "[1]"), "--extra-body is '[1]': write a JSON object"),
        (("--url", "http://localhost", "--prompts", "/no/such/file"), "can't read --prompts /no/such/file"),
        (("--url", "http://localhost", "--plot", "plot.gif"), "--plot is 'plot.gif'"),
        (("--url", "http://127.0.0.1:1"), "can't reach http://127.0.0.1:1"),
    ],
)
def test_input_that_can_not_be_used(options: tuple[str, ...], words: str, call: Caller) -> None:
    result = call("benchmark", *options)
    assert (result.code, result.out) == (2, "")
    assert words in result.err.splitlines()[-1]
    assert sum(line.startswith("error: ") for line in result.err.splitlines()) == 1


def test_a_server_without_models_or_one_that_hangs_up(stub: StubServer, call: Caller) -> None:
    stub.routes["/v1/models"] = lambda _: as_json({"data": []})
    result = call("benchmark", "--url", stub.url)
    assert result.code == 2 and "answers an empty list: check --url, or give --model" in result.err
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = call("benchmark", "--url", url, "--timeout", "0.2")  # it never accepts
    assert result.code == 2 and f"can't reach {url}" in result.err


def test_a_plot(server: LiveServer, call: Caller, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.svg"
    options = ("benchmark", "--url", server.url, "--num-requests", "2", "--output-tokens", "3", "--json")
    measured(call(*options, "--plot", str(path)))
    assert path.read_bytes().startswith(b"<?xml")
    path.unlink()
    path.mkdir()
    result = call(*options, "--plot", str(path))
    assert measured(result, code=1)["num_completed"] == 2
    assert f"error: can't write --plot {path}: Is a directory" in result.err


@pytest.mark.slow
def test_ctrl_c_prints_what_was_measured() -> None:
    with serving(word_pipeline()) as server:
        options = ("--num-requests", "10000", "--concurrency", "2", "--output-tokens", "3", "--json")
        with started("benchmark", "--url", server.url, *options) as process:
            read_until(process.stderr, b"10000 requests")
            assert isinstance(server.pipe.model, FakeModel)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
    found = measured(Result(process.returncode, out.decode(), err.decode()), code=130)
    assert found["num_completed"] + found["num_unfinished"] == found["num_requests"] == 10_000
    assert found["num_unfinished"] > 0 and found["num_failed"] == 0
    assert "stopped" in found["notes"][0]


def test_the_page_has_every_option_and_every_number() -> None:
    text = PAGE.read_text()
    options = {option for each in cli.commands.commands["benchmark"].params for option in each.opts}
    assert not [name for name in options | KEYS if f"`{name}`" not in text and name != "--json"]
