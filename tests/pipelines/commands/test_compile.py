"""`pipelines compile` writes what `--artifacts` starts from, with the results of a start that compiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Caller, run
from loader import Loader
from max.engine import InferenceSession, read
from max.graph import Graph
from PIL import Image

from pipelines import PipelineConfig, SamplingParams, load_pipeline
from pipelines.loading.artifacts.manifest import Manifest
from pipelines.loading.artifacts.target import cpu_features
from pipelines.text.prompts import ImagePrompt

PROMPT = "import os"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    return Caller(capsys, monkeypatch)


@pytest.fixture(scope="module")
def demo_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the demo, in a folder whose parents are made too."""
    folder = tmp_path_factory.mktemp("compiled") / "new" / "demo"
    done = run("compile", "--output", str(folder))
    assert done.code == 0, done.err
    assert f"{folder / 'decoder.mef'}  " in done.out and "for cpu:0, cpu, bfloat16" in done.out
    assert list(folder.parent.iterdir()) == [folder]
    return folder


def refuse_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, a graph that is traced or compiled fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("it traces or compiles a graph")

    for owner, name in ((InferenceSession, "compile"), (InferenceSession, "compile_async"), (Graph, "__init__")):
        monkeypatch.setattr(owner, name, refuse)


@pytest.mark.compiles
def test_artifacts_give_the_same_logits_without_tracing_or_compiling(
    demo_artifacts: Path, load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = load("demo").logits([PROMPT])
    refuse_to_compile(monkeypatch)
    with load_pipeline(PipelineConfig(artifacts=demo_artifacts), warm_up=True) as pipe:  # type: ignore[arg-type]
        (logits,) = pipe.logits([PROMPT])
    assert np.array_equal(logits, expected)


@pytest.mark.compiles
def test_a_process_with_empty_caches_writes_nothing_but_the_libraries(demo_artifacts: Path, tmp_path: Path) -> None:
    caches = {"XDG_CACHE_HOME": str(tmp_path / "xdg"), "MODULAR_MAX_CACHE_DIR": str(tmp_path / "max")}
    options = ["--prompt", PROMPT, "--max-new-tokens", "4"]
    done = run("generate", *options, "--artifacts", str(demo_artifacts), stdin=b"", **caches)
    assert (done.code, done.out) == (0, run("generate", *options).out), done.err
    files = sorted(path.name.partition("_")[0] for path in (tmp_path / "xdg" / "graph-pipelines").iterdir())
    assert files == ["quantize", "sampling"] and not (tmp_path / "max").exists()
    assert "graph ..." not in done.err and "compile" not in done.err.replace("graphs compiled ahead of time", "")


@pytest.mark.compiles
def test_a_second_start_traces_nothing_and_gives_the_same(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = load("demo").logits([PROMPT])
    refuse_to_compile(monkeypatch)
    with load_pipeline(PipelineConfig()) as pipe:
        (logits,) = pipe.logits([PROMPT])
    assert np.array_equal(logits, expected)


@pytest.mark.compiles
def test_artifacts_of_another_encoding_are_refused_before_anything_is_loaded(
    demo_artifacts: Path, call: Caller
) -> None:
    wrong = ["--artifacts", str(demo_artifacts), "--quantization-encoding", "float32"]
    message = call("generate", "--prompt", PROMPT, *wrong).error()
    assert "quantization_encoding is bfloat16, and float32 is needed" in message
    assert "head_encoding is bfloat16, and float32 is needed" in message and "code is" not in message


@pytest.mark.compiles
def test_a_cpu_with_fewer_instruction_sets_is_refused(
    demo_artifacts: Path, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = frozenset(sorted(cpu_features())[1:])
    monkeypatch.setattr("pipelines.opened_model.cpu_features", lambda: fewer)
    (missing,) = cpu_features() - fewer
    message = call("generate", "--prompt", PROMPT, "--artifacts", str(demo_artifacts)).error()
    assert f"cpu has no {missing}, which they are compiled with" in message


@pytest.mark.compiles
def test_all_graphs_of_a_model_with_images_are_compiled(
    checkpoints: Mapping[str, Path], load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "gemma3_multimodal"
    pipe = load(name)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8))
    prompt, params = ImagePrompt("w5 <start_of_image> w9", [picture]), SamplingParams(max_new_tokens=3)
    expected = pipe.generate(prompt, params)[0]
    done = run("compile", "--model", str(checkpoints[name]), "--output", str(tmp_path / "out"))
    assert done.code == 0, done.err
    assert set(Manifest.read(tmp_path / "out").graphs) == set(pipe.model.graph_names) > {"decoder"}
    refuse_to_compile(monkeypatch)
    config = PipelineConfig(model=str(checkpoints[name]), artifacts=str(tmp_path / "out"))
    with load_pipeline(config) as compiled:
        output = compiled.generate(prompt, params)[0]
    assert output.error is None and output.tokens == expected.tokens


@pytest.mark.gpu_compile
def test_graphs_for_gpus_that_are_not_here(checkpoints: Mapping[str, Path], tmp_path: Path, call: Caller) -> None:
    model, output = ["--model", str(checkpoints["llama3"])], tmp_path / "out"
    target = ["--devices", "gpu", "--target", "cuda:sm_90a"]
    done = subprocess.run(
        [sys.executable, "-c", "import cli; cli.main()", "compile", *model, *target, "--output", output],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads((output / "manifest.json").read_text())
    assert (content["run"]["devices"], content["run"]["target"]) == ("gpu:0", "cuda:sm_90")
    assert (content["run"]["quantization_encoding"], content["run"]["kv_cache_dtype"]) == ("bfloat16", "bfloat16")
    assert b"sm_90a" in (output / "decoder.mef").read_bytes()
    weights = Manifest.read(output).graphs["decoder"].weights
    assert {spec.shard for spec in weights} == {0} and len(weights) > 10
    assert set(content["graphs"]) == {"decoder", "sampler"}
    sampler = {"process", "greedy", "sample", "log_probabilities", "insert"}
    assert set(read(output / "sampler.mef")._compiled.names) == sampler
    message = call("generate", "--prompt", "w5", *model, "--artifacts", str(output)).error()
    for difference in ("target is cuda:sm_90, and cpu is needed", "devices is gpu:0, and cpu:0 is needed"):
        assert difference in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "cuda:sm_90a"], ["target (--target) is 'cuda:sm_90a'", "devices (--devices) is 'cpu'"]),
        (["--devices", "gpu", "--target", "cpu"], ["target (--target) is 'cpu'", "devices (--devices) is 'gpu'"]),
        (["--devices", "gpu", "--target", "sm_90a"], ["'sm_90a'", "write for example cuda:sm_90a or hip:gfx942"]),
        (["--quantization-encoding", "float8_e4m3fn"], ["does not run in float8_e4m3fn on cpu"]),
        (["--model", "./nowhere"], ["./nowhere"]),
    ],
)
def test_a_compilation_that_cant_be_is_refused(
    call: Caller, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    message = call("compile", *options, "--output", str(tmp_path / "out")).error()
    assert all(word in message for word in words), message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_holds_something_else_is_left_alone(call: Caller, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")
    for output in (tmp_path, tmp_path / "thesis.txt"):
        assert "holds something else" in call("compile", "--output", str(output)).error()
    assert (tmp_path / "thesis.txt").read_text() == "the only copy"


@pytest.mark.slow
def test_a_folder_that_cant_be_written_is_named_before_anything_is_compiled(call: Caller, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "can't write output (--output)" in call("compile", "--output", str(tmp_path / "file" / "out")).error()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "verify"])
def test_artifacts_that_are_not_there_are_refused(call: Caller, tmp_path: Path, command: str) -> None:
    message = call(command, "--prompt", PROMPT, "--artifacts", str(tmp_path)).error()
    assert f"can't read {tmp_path / 'manifest.json'}" in message and "pipelines compile" in message
