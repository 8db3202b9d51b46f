"""The command's output and exit codes."""

from __future__ import annotations

import itertools
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import httpx
import pytest
from command import TIMEOUT_S, Caller, Result, read_until, run, started
from loader import Loader

import cli
from pipelines.loading.checkpoint import DEMO_FOLDER
from pipelines.loading.encodings import ENCODINGS
from pipelines.registry import Registry, SupportedArchitecture

PROMPTS = ["def first(items):\n    ", "import os", "class Größe:\n"]
PROMPT_OPTIONS = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
MANY_PROMPTS = ["--prompt", "import os\n"] * 100 + ["--max-batch-size", "1", "--max-new-tokens", "900"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    return Caller(capsys, monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def compiled(load: Loader) -> None:
    """A cold compilation takes longer than the command's time limit here."""
    load("demo")


def objects(result: Result) -> list[dict[str, Any]]:
    assert result.code == 0
    return [json.loads(line) for line in result.out.splitlines()]


def test_stdout_has_the_texts_in_order_and_stderr_the_stages_and_stats(call: Caller) -> None:
    result = run("generate", *PROMPT_OPTIONS, "--max-new-tokens", "40", "--stats", PYTHONIOENCODING="utf-8")
    as_json = call("generate", *PROMPT_OPTIONS, "--max-new-tokens", "40", "--json")
    assert [output["prompt"] for output in objects(as_json)] == PROMPTS
    assert all(output["num_prompt_tokens"] and output["tokens"] for output in objects(as_json))
    assert all(output["finish_reason"] in ("stop", "length") for output in objects(as_json))
    assert result.out == "".join(output["text"] + "\n" for output in objects(as_json))
    assert result.code == 0
    (stats,) = result.messages  # no warning either
    assert "decode " in stats and "peak memory" in stats
    stages = [line.split()[0] for line in result.err.splitlines()]
    loading = (
        ["graph", "weights", "compile"] if "graph" in stages else ["weights", "load"]
    )  # if an earlier start kept it
    assert stages == ["config", "checkpoint", "tokenizer", "KV", *loading, "cache", "prefill"]
    assert "\x1b" not in result.err and "\r" not in result.err
    assert as_json.messages == []


def test_a_dash_reads_standard_input(call: Caller) -> None:
    text = "# Größe 🎈\nimport os"
    result = call("generate", "--prompt", "-", "--max-new-tokens", "3", "--json", stdin=f"{text}\n".encode())
    assert [output["prompt"] for output in objects(result)] == [text]


def test_seed_and_stop(call: Caller) -> None:
    sampling = ["--prompt", "import", "--max-new-tokens", "60", "--json", "--temperature", "1.5"]
    first, again, other = (objects(call("generate", *sampling, "--seed", seed))[0] for seed in ("7", "7", "8"))
    assert first == again
    assert first["tokens"] != other["tokens"]
    stop = first["text"][10:13]
    (stopped,) = objects(call("generate", *sampling, "--seed", "7", "--stop", stop))
    assert stopped["text"] == first["text"].partition(stop)[0]
    assert stopped["finish_reason"] == "stop"


def test_the_chat_template_is_the_default_of_instruction_models_alone(call: Caller, tmp_path: Path) -> None:
    for name in ("model-base", "model-it"):
        (tmp_path / name).mkdir()
        for file in DEMO_FOLDER.iterdir():
            (tmp_path / name / file.name).symlink_to(file)

    def num_prompt_tokens(name: str, *options: str) -> int:
        shared = ("--prompt", "import os", "--max-new-tokens", "1", "--json")
        return int(
            objects(call("generate", "--model", str(tmp_path / name), *shared, *options))[0]["num_prompt_tokens"]
        )

    raw, chat = num_prompt_tokens("model-base", "--raw"), num_prompt_tokens("model-base", "--chat")
    assert chat > raw
    assert num_prompt_tokens("model-base") == raw
    assert num_prompt_tokens("model-it") == chat


def test_sampling_defaults_of_the_checkpoint_are_told_and_can_be_refused(call: Caller, tmp_path: Path) -> None:
    for file in DEMO_FOLDER.iterdir():
        (tmp_path / file.name).symlink_to(file)
    defaults = json.loads((DEMO_FOLDER / "generation_config.json").read_text())
    defaults |= {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps(defaults))
    shared = ["generate", "--model", str(tmp_path), "--prompt", "import", "--max-new-tokens", "20", "--seed", "1"]
    sampled, said, greedy, plain = (
        call(*shared, *options)
        for options in (
            [],
            ["--generation-config", "none", "--temperature", "0.6", "--top-k", "20", "--top-p", "0.95"],
            ["--temperature", "0"],
            ["--generation-config", "none"],
        )
    )
    (line,) = sampled.messages
    assert line.startswith("sampling: temperature 0.6, top_k 20, top_p 0.95 (from generation_config.json")
    assert sampled.out == said.out != greedy.out == plain.out
    assert said.messages == greedy.messages == plain.messages == []


def modalities(record: SupportedArchitecture) -> str:
    return " and ".join(record.input_modalities)


def test_list_shows_what_runs_where(call: Caller) -> None:
    result = call("list")
    assert (result.code, result.err) == (0, "")
    cells = [re.split(r"  +", line.strip()) for line in result.out.splitlines() if line.strip()]
    assert cells[0] == ["architecture", "sizes", "input", "on CPU", "on GPU", "example models"]
    assert ["Gemma3ForCausalLM", "270M, 1B", "text", "float32", "bfloat16", "google/gemma-3-270m-it"] in cells
    assert "\u2026" not in result.out  # nothing is cut off
    for record in Registry.load().architectures.values():
        shown = {record.name, record.sizes, modalities(record), *record.example_repo_ids}
        assert shown <= set(itertools.chain(*cells))


def readme_tables() -> Iterator[list[str]]:
    """The cells of each row of a table in the README."""
    for line in (Path(cli.__file__).parent / "README.md").read_text().splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_architectures_in_the_readme_is_that_of_the_registry() -> None:
    written = [row for row in readme_tables() if "For" in row[0]]
    records = Registry.load().architectures.values()
    assert written == sorted([r.name, r.sizes, modalities(r)] for r in records)


def test_the_table_of_encodings_in_the_readme_is_that_of_the_records() -> None:
    rows = {row[0]: row[2:] for row in readme_tables() if row[0] in ENCODINGS and len(row) == 4}
    assert rows.keys() == set(ENCODINGS)
    for record in Registry.load().architectures.values():
        family = "Qwen 3" if record.name.startswith("Qwen3") else record.name
        for column, device_kind in enumerate(("cpu", "gpu")):
            shown = {name for name, cells in rows.items() if cells[column] in ("yes", family)}
            assert shown == set(record.encodings[device_kind]), (record.name, device_kind)


def test_a_server_answers_until_it_is_told_to_end() -> None:
    with started("serve", "--port", "0", "--served-model-name", "demo", "--log-format", "json") as process:
        address = re.search(rb"http://[\d.:]+", read_until(process.stderr, b"is loaded)"))
        assert address
        with httpx.Client(base_url=address[0].decode(), timeout=TIMEOUT_S) as client:
            while client.get("/ready").status_code != 200:
                time.sleep(0.2)
            request = {"model": "demo", "prompt": "import os\n", "max_tokens": 5}
            (choice,) = client.post("/v1/completions", json=request).json()["choices"]
            assert choice["finish_reason"] == "length" and choice["text"]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    logged = [json.loads(line) for line in err.decode().splitlines() if line.startswith("{")]
    assert {"POST"} <= {entry.get("method") for entry in logged} and all(entry["level"] == "info" for entry in logged)
    assert "import os" not in err.decode(), "nothing of a request's text is logged"


def test_a_busy_port_is_one_line_before_anything_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("serve", "--port", str(taken.getsockname()[1]))
    assert "choose another --port" in result.error()
    assert "config" not in result.err


def test_a_closed_stdout_ends_it_quietly() -> None:
    with started("generate", *MANY_PROMPTS) as process:
        stdout, stderr = cast(BinaryIO, process.stdout), cast(BinaryIO, process.stderr)
        assert stdout.readline()
        stdout.close()
        err = stderr.read().decode()
        assert process.wait(TIMEOUT_S) == 0
    assert Result(0, "", err).messages == []


def test_text_comes_as_it_is_made_and_ctrl_c_ends_it_at_once_and_quietly() -> None:
    with started("generate", *MANY_PROMPTS) as process:
        assert len(read_until(process.stdout, b"")) < 1000  # a full buffer would be 8192
        time.sleep(0.2)
        assert process.poll() is None
        assert_ends_quietly(process)


def test_ctrl_c_ends_a_compilation_at_once_and_quietly(tmp_path: Path) -> None:
    with started("generate", "--prompt", "import os", MODULAR_CACHE_DIR=str(tmp_path)) as process:
        read_until(process.stderr, b"compile")
        time.sleep(1)
        assert process.poll() is None
        assert_ends_quietly(process)


def assert_ends_quietly(process: Any) -> None:
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert [line for line in Result(130, "", err.decode()).messages if line] == []
