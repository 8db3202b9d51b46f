"""Input that can't be used: one line with the reason and the remedy, and exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import max.driver
import pytest
from command import COMMAND, TIMEOUT_S, Caller, Result, run
from PIL import Image

from pipelines.loading.checkpoint import DEMO_FOLDER

pytestmark = pytest.mark.slow  # together they take seconds

Header = dict[str, dict[str, Any]]
UP_PROJ, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    return Caller(capsys, monkeypatch)


@pytest.fixture
def demo_copy(tmp_path: Path) -> Path:
    return shutil.copytree(DEMO_FOLDER, tmp_path / "copy")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_header(folder: Path, change: Callable[[Header], Any]) -> None:
    """Rewrites what a safetensors file says of its tensors; each keeps the bytes that the change gives it."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:end]), b""
    change(header)
    for name in header.keys() - {"__metadata__"}:
        start, stop = header[name]["data_offsets"]
        header[name] = header[name] | {"data_offsets": [len(body), len(body) + stop - start]}
        body += data[end + start : end + stop]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], ["'frobnicate'", "pipelines --help"]),
        (["generate", "--frobnicate"], ["'--frobnicate'", "pipelines generate --help"]),
        (["generate", "--prompt", "x", "more"], ["more", "pipelines generate --help"]),
        (["generate", "--prompt", "x", "--max-new-tokens", "many"], ["--max-new-tokens", "'many'"]),
        (["generate"], ["no prompt", "--prompt"]),
        (["generate", "--prompt", "x", "--prompt", ""], ["prompt is empty"]),
        (["generate", "--prompt", "\udcff"], ["not UTF-8"]),
        (["generate", "--prompt", "x", "--devices", "tpu"], ["'tpu'", "cpu, gpu"]),
        (["generate", "--prompt", "x", "--quantization-encoding", "q1"], ["'q1'", "'float32'", "'bfloat16'"]),
        (["generate", "--prompt", "x", "--kv-cache-memory", "lots"], ["'lots'", "2GiB"]),
        (["generate", "--prompt", "x", "--max-batch-size", "0"], ["max_batch_size", "0", "from 1 to"]),
        (["generate", "--prompt", "x", "--max-length", "-5"], ["max_length", "-5", "from 1 to"]),
        (["generate", "--prompt", "x", "--custom-architectures", "no_such_module"], ["'no_such_module'"]),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str], words: list[str], call: Caller) -> None:
    line = call(*arguments).error()
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--temperature", "-0.1", "from 0 to 100"),
        ("--temperature", "nan", "from 0 to 100"),
        ("--temperature", "1e9", "from 0 to 100"),
        ("--top-k", "-2", "at least -1"),
        ("--top-p", "0", "above 0 and at most 1"),
        ("--top-p", "1.01", "above 0 and at most 1"),
        ("--min-p", "-inf", "from 0 to 1"),
        ("--repetition-penalty", "0", "above 0 and at most 10"),
        ("--presence-penalty", "11", "from -10 to 10"),
        ("--frequency-penalty", "-11", "from -10 to 10"),
        ("--max-new-tokens", "0", "at least 1"),
        ("--seed", "-1", "from 0 to"),
        ("--seed", str(2**64), "from 0 to"),
        ("--stop", "", "1 to"),
    ],
)
def test_sampling_values_out_of_range(option: str, value: str, allowed: str, call: Caller) -> None:
    line = call("generate", "--prompt", "x", option, value).error()
    assert option.lstrip("-").replace("-", "_") in line
    assert allowed in line
    assert value == "" or value in line or str(float(value)) in line


def test_standard_input_that_is_empty_or_not_utf_8(call: Caller) -> None:
    assert "empty" in call("generate", "--prompt", "-", stdin=b"\n").error()
    for locale in ("C", "C.UTF-8"):
        line = run("generate", "--prompt", "-", stdin=b"abc\xff", LC_ALL=locale).error()
        assert "standard input is not UTF-8" in line and "byte 3" in line


def test_a_folder_that_does_not_exist() -> None:
    assert "'./no/such/folder'" in run("generate", "--prompt", "x", "--model", "./no/such/folder").error()


def test_a_hub_model_without_a_network(tmp_path: Path) -> None:
    ask = ("generate", "--prompt", "x", "--model", "nobody/no-such-model")
    line = run(*ask, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1").error()
    assert "'nobody/no-such-model'" in line and "HF_HUB_OFFLINE" in line
    line = run(*ask, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:1").error()
    assert "'nobody/no-such-model'" in line and "check the network" in line


def test_an_architecture_that_is_not_there(call: Caller, demo_copy: Path) -> None:
    change_config(demo_copy, architectures=["GrokForCausalLM"])
    line = call("generate", "--prompt", "x", "--model", str(demo_copy)).error()
    assert "'GrokForCausalLM'" in line
    assert "supported: Gemma3ForCausalLM, Gemma3ForConditionalGeneration" in line


def _drop(header: Header) -> None:
    del header[UP_PROJ]


def _misshape(header: Header) -> None:
    header[UP_PROJ]["shape"].reverse()


def _add_unknown(header: Header) -> None:
    header["model.frobnicator.weight"] = header[NORM]


def _add_a_layer(header: Header) -> None:
    header["model.layers.6.mlp.up_proj.weight"] = header[UP_PROJ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop, ["missing tensor", "layers.0.mlp.up_proj"]),
        (_misshape, [f"'{UP_PROJ}'", "[256, 768]", "[768, 256]"]),
        (_add_unknown, ["unexpected tensor 'model.frobnicator.weight'"]),
        (_add_a_layer, ["unexpected tensor 'model.layers.6.mlp.up_proj.weight'"]),
    ],
)
def test_tensors_that_are_not_those_of_the_model(
    change: Callable[[Header], None], words: list[str], call: Caller, demo_copy: Path
) -> None:
    change_header(demo_copy, change)
    result = call("generate", "--prompt", "x", "--model", str(demo_copy))
    assert [word for word in words if word not in result.error()] == []
    assert "compile" not in result.err


def test_a_truncated_file(call: Caller, demo_copy: Path) -> None:
    path = demo_copy / "model.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1000)
    line = call("generate", "--prompt", "x", "--model", str(demo_copy)).error()
    assert str(path) in line and str(size) in line and str(size - 1000) in line


def test_what_the_device_can_not_run(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    line = call("generate", "--prompt", "x", "--quantization-encoding", "float8_e4m3fn").error()
    assert "float8_e4m3fn on cpu" in line and line.endswith(
        ": float32, bfloat16, gguf, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0"
    )
    monkeypatch.setattr(max.driver, "accelerator_count", lambda: 0)
    assert "no GPU found" in call("generate", "--prompt", "x", "--devices", "gpu").error()


def test_a_number_of_devices_that_can_not_share_the_model(call: Caller) -> None:
    line = call("generate", "--prompt", "x", "--devices", "cpu:0,cpu:0,cpu:0").error()
    assert "num_attention_heads 4 can't be split over 3 devices" in line and line.endswith(
        "(--devices); possible here: 1, 2"
    )


def test_limits_that_the_model_or_the_memory_can_not_meet(call: Caller) -> None:
    line = call("generate", "--prompt", "x", "--max-length", "1025").error()
    assert "(--max-length) 1025" in line and "1024" in line
    line = call("generate", "--prompt", "x", "--kv-cache-memory", "100KiB").error()
    assert "100 KiB" in line and "--kv-cache-memory" in line
    line = call("generate", "--prompt", "x", "--kv-cache-memory", "2MiB", "--max-length", "1024").error()
    assert "1024 tokens" in line and "2 MiB" in line and "--max-length" in line


def test_a_prompt_longer_than_the_limit(call: Caller) -> None:
    line = call("generate", "--prompt", "x", "--prompt", "x = 1\n" * 2000, "--max-length", "300").error()
    num_tokens = int(line.split("the prompt has ")[1].split()[0])
    assert num_tokens > 300
    assert "limit is 300" in line and "--max-length" in line


def test_a_chat_without_a_template(call: Caller, demo_copy: Path) -> None:
    (demo_copy / "chat_template.jinja").unlink()
    line = call("generate", "--prompt", "x", "--chat", "--model", str(demo_copy)).error()
    assert "no chat template" in line


PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)


@pytest.fixture
def images(tmp_path: Path) -> dict[str, str]:
    """Arguments of --image, good and bad."""
    text, wide = tmp_path / "text.png", tmp_path / "wide.png"
    text.write_text("this is no image")
    Image.new("L", (20_000, 10)).save(wide)
    return {
        "not an image": str(text),
        "too large": str(wide),
        "not there": str(tmp_path / "nowhere.png"),
        "cut": PNG[:60],
        "private": "http://user@127.0.0.1/x.png",
        "of another scheme": "ftp://example.com/x.png",
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not an image", ["text.png", "is not an image"]),
        ("too large", ["wide.png", "20000", "pixels"]),
        ("not there", ["nowhere.png", "no file"]),
        ("cut", ["data:image/png", "cut short"]),
        ("private", ["can't fetch", "user name or password"]),
        ("of another scheme", ["ftp://example.com/x.png", "scheme"]),
    ],
)
def test_an_image_that_can_not_be_used(call: Caller, images: dict[str, str], name: str, words: list[str]) -> None:
    line = call("generate", "--prompt", "x", "--image", images[name]).error()
    assert [word for word in words if word not in line] == []


def test_an_image_for_a_model_of_text(call: Caller) -> None:
    result = call("generate", "--prompt", "x", "--image", PNG)
    assert "takes text alone" in result.error()
    assert "compile" not in result.err


def test_more_images_than_places(call: Caller, checkpoints: Mapping[str, Path]) -> None:
    model = ["--model", str(checkpoints["gemma3_multimodal"])]
    for chat in ("--chat", "--raw"):
        result = call("generate", *model, chat, "--prompt", "<start_of_image> w5", "--image", PNG, "--image", PNG)
        assert "has 1 times <start_of_image>, but 2 images" in result.error()
        assert "compile" not in result.err


@pytest.fixture
def float8_copy(checkpoints: Mapping[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints["qwen3_fp8"], tmp_path / "float8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quant_method": "awq"}, ["quant_method 'awq'", "'fp8'"]),
        ({"quant_method": "fp8"}, ["weight_block_size None"]),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, ["weight_block_size [128, 0]"]),
        ({"quant_method": "fp8", "activation_scheme": "static"}, ["activation_scheme 'static'"]),
    ],
)
def test_a_quantization_that_is_not_built(
    call: Caller, float8_copy: Path, changes: dict[str, Any], words: list[str]
) -> None:
    change_config(float8_copy, quantization_config=changes)
    line = call("generate", "--prompt", "w5", "--model", str(float8_copy)).error()
    assert [word for word in words if word not in line] == []


def test_scales_of_another_shape(call: Caller, float8_copy: Path) -> None:
    quantization = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    change_config(float8_copy, quantization_config=quantization)
    result = call("generate", "--prompt", "w5", "--model", str(float8_copy))
    assert "q_proj.weight_scale_inv' has shape [1, 2], but config.json asks for [2, 3]" in result.error()
    assert "compile" not in result.err


def test_variables_of_a_template_that_are_no_json(call: Caller) -> None:
    for text in ("{", "[1]", "x"):
        line = call("generate", "--prompt", "x", "--chat-template-kwargs", text).error()
        assert "--chat-template-kwargs" in line and "JSON object" in line


BIG_OUTPUT = """
import cli
@cli.commands.command()
def big():
    for _ in range(9):
        print("x" * 100_000)
    raise SystemExit("not reached")
cli.main(["big"])
"""
DESCRIPTOR = """
import cli, os
@cli.commands.command()
def descriptor():
    os._exit(os.open(os.devnull, os.O_RDONLY))
cli.main(["descriptor"])
"""
COMMANDS: dict[str, list[str | Path]] = {
    "list": [COMMAND, "list"],
    "help": [COMMAND, "--help"],
    "version": [COMMAND, "--version"],
    "big": [sys.executable, "-c", BIG_OUTPUT],
    "descriptor": [sys.executable, "-c", DESCRIPTOR],
    "usage": [COMMAND, "frobnicate"],
    "no arguments": [COMMAND],
    "refused after stages": [COMMAND, "generate", "--prompt", "x", "--image", PNG],
    "standard input": [COMMAND, "generate", "--prompt", "-"],
}


@pytest.fixture
def broken_pipe() -> Iterator[int]:
    """A pipe whose reader has closed it."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    yield write_end
    os.close(write_end)


def redirected(
    name: str, redirection: str = "", stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE
) -> Result:
    """Runs a command with streams as a shell makes them."""
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMANDS[name]]
    environment = dict(os.environ)  # MAX changes the real one behind Python's back
    done = subprocess.run(
        shell, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment, timeout=TIMEOUT_S
    )
    return Result(done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode())


@pytest.mark.parametrize("name", ["list", "help", "version", "big"])
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_a_standard_output_that_can_not_be_written(name: str, redirection: str, reason: str) -> None:
    result = redirected(name, redirection)
    assert (result.code, result.err) == (1, f"error: can't write standard output: {reason}\n")


@pytest.mark.parametrize("name", ["list", "help", "version", "big"])
def test_a_standard_output_that_nobody_reads(name: str, broken_pipe: int) -> None:
    result = redirected(name, stdout=broken_pipe)
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("name", ["usage", "no arguments"])
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">/dev/full 2>&1", "<&- >&- 2>&-"])
def test_a_standard_error_that_can_not_be_written(name: str, redirection: str) -> None:
    assert redirected(name, redirection) == Result(2, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_stages_that_can_not_be_written(redirection: str) -> None:
    assert redirected("refused after stages", redirection) == Result(2, "", "")


def test_a_standard_error_that_nobody_reads(broken_pipe: int) -> None:
    assert redirected("usage", stderr=broken_pipe) == Result(2, "", "")
    assert redirected("usage", stdout=broken_pipe, stderr=broken_pipe) == Result(2, "", "")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_output_does_not_need_a_standard_error(redirection: str) -> None:
    result = redirected("version", redirection)
    assert (result.code, result.out.split()[0]) == (0, "pipelines,")


def test_a_standard_input_that_is_closed_or_can_not_be_read() -> None:
    assert "the prompt is empty" in redirected("standard input", "<&-").error()
    line = redirected("standard input", "0>/dev/null").error()
    assert "can't read standard input: Bad file descriptor" in line


def test_files_do_not_take_the_place_of_closed_streams() -> None:
    assert redirected("descriptor", "<&- >&- 2>&-").code > 2
