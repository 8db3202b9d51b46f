"""Models are found in folders and on the hub, and what keeps them from being found is said in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from pipelines.errors import InputError
from pipelines.loading.checkpoint import Checkpoint, find_weights, resolve_config

# The HTTP library that the client is built on, whichever it is in this version.
httpx = pytest.importorskip(errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0])

GEMMA = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 2,
    "torch_dtype": "bfloat16",
    "eos_token_id": 1,
}


def write_model(folder: Path, config: Any = GEMMA, **files: Any) -> Path:
    for name, content in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_local_folder(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").touch()
    checkpoint = resolve_config(str(tmp_path))
    assert checkpoint.architectures == ["Gemma3ForCausalLM"]
    assert checkpoint.dtype == "bfloat16"
    assert checkpoint.download_weights() == [tmp_path / "model.safetensors"]
    assert checkpoint.huggingface_config.num_hidden_layers == 2
    assert checkpoint.huggingface_config.sliding_window == 4096  # filled in by transformers


def test_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    write_model(tmp_path / "m")
    assert resolve_config("~/m").path == tmp_path / "m"


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [1, 106]}, {"eos_token_id": 7}, (1, 106)),
        ({}, {"eos_token_id": 7, "text_config": {"eos_token_id": 9}}, (7,)),
        ({"eos_token_id": None}, {"text_config": {"eos_token_id": [9, 9, 8]}}, (9, 8)),
        ({}, {}, ()),
        ({"eos_token_id": 0}, {"eos_token_id": 7}, (0,)),
    ],
)
def test_end_of_answer(tmp_path: Path, generation: Any, config: Any, expected: tuple[int, ...]) -> None:
    assert resolve_config(str(write_model(tmp_path, config, generation_config=generation))).eos_token_ids == expected


def test_end_of_answer_that_is_no_token(tmp_path: Path) -> None:
    checkpoint = resolve_config(str(write_model(tmp_path, {"eos_token_id": ["x"]})))
    assert "eos_token_id" in refusal(lambda: checkpoint.eos_token_ids)


def test_weights_are_found_by_index_or_by_name(tmp_path: Path) -> None:
    names = ["model-1.safetensors", "model-2.safetensors"]
    for name in [*names, "other.safetensors"]:
        (tmp_path / name).touch()
    assert [path.name for path in find_weights(tmp_path)] == [*names, "other.safetensors"]
    index = {"weight_map": {"a": names[1], "b": names[0], "c": names[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in find_weights(tmp_path)] == names
    (tmp_path / names[1]).unlink()
    message = refusal(lambda: find_weights(tmp_path))
    assert "1 of 2" in message
    assert names[1] in message
    assert names[0] not in message


def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "secret.safetensors").touch()
    (inside / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    assert "secret.safetensors" in refusal(lambda: find_weights(inside))


@pytest.mark.parametrize(("file", "expected"), [("pytorch_model.bin", ".bin"), ("x.gguf", ".gguf"), ("README", "no ")])
def test_a_folder_without_safetensors(tmp_path: Path, file: str, expected: str) -> None:
    (tmp_path / file).touch()
    message = refusal(lambda: find_weights(tmp_path))
    assert message.startswith("no safetensors files in ")
    assert expected in message


@pytest.mark.parametrize("content", ["{", "", "[1]", "\x00", "[" * 100_000])
def test_damaged_json(tmp_path: Path, content: str) -> None:
    assert "config.json" in refusal(lambda: resolve_config(str(write_model(tmp_path, content))))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("./nowhere", "there is no folder './nowhere'"),
        ("/no/where", "there is no folder '/no/where'"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        ("", "there is no folder ''"),
        ("what is this?", "there is no folder"),
        ("x" * 5000, "not a folder that can be read"),
        ("~nobody-at-all/m", "not a folder that can be read"),
    ],
)
def test_names_that_can_be_no_model(model: str, expected: str) -> None:
    assert expected in refusal(lambda: resolve_config(model))


def test_a_folder_that_is_no_model_and_a_file(tmp_path: Path) -> None:
    assert "no config.json" in refusal(lambda: resolve_config(str(tmp_path)))
    (tmp_path / "model.safetensors").touch()
    assert "is a file" in refusal(lambda: resolve_config(str(tmp_path / "model.safetensors")))


def test_code_of_a_checkpoint_runs_only_when_allowed(tmp_path: Path) -> None:
    write_model(tmp_path, {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}})
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    checkpoint = resolve_config(str(tmp_path))
    assert "--trust-remote-code" in refusal(lambda: checkpoint.huggingface_config)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("config", [{"model_type": "unheard_of"}, {}, GEMMA | {"hidden_size": "many"}])
def test_a_config_that_transformers_cannot_use(tmp_path: Path, config: dict[str, Any]) -> None:
    checkpoint = resolve_config(str(write_model(tmp_path, config)))
    assert "config.json of" in refusal(lambda: checkpoint.huggingface_config)


class Hub:
    """Stands in for snapshot_download: gives a folder, or raises."""

    def __init__(self, answer: Path | Exception) -> None:
        self.answer = answer
        self.calls: list[dict[str, Any]] = []

    def __call__(self, repo_id: str, **kwargs: Any) -> str:
        self.calls.append({"repo_id": repo_id, **kwargs})
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def response(status: int) -> Any:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/api/models/org/name"))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            errors.GatedRepoError("403\nno", response=response(403)),
            ["gated", "accept the licence at https://huggingface.co/org/name", "set HF_TOKEN"],
        ),
        (errors.RepositoryNotFoundError("401", response=response(401)), ["no such model", "HF_TOKEN"]),
        (errors.RevisionNotFoundError("404", response=response(404)), ["no revision 'v9'"]),
        (errors.DisabledRepoError("403", response=response(403)), ["disabled"]),
        (errors.HfHubHTTPError("500", response=response(500)), ["HTTP 500"]),
        (errors.HFValidationError("bad"), ["hub id"]),
        (caused(errors.LocalEntryNotFoundError("x"), errors.OfflineModeIsEnabled("y")), ["HF_HUB_OFFLINE"]),
        (caused(errors.LocalEntryNotFoundError("x"), httpx.ConnectError("y")), ["can't be reached", "network"]),
        (OSError(28, "No space left on device"), ["No space left on device"]),
        (RuntimeError("transfer\nbroke"), ["transfer broke"]),
    ],
)
def test_refusals_of_the_hub(monkeypatch: pytest.MonkeyPatch, error: Exception, expected: list[str]) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(error))
    message = refusal(lambda: resolve_config("org/name", revision="v9"))
    assert "'org/name'" in message
    for words in expected:
        assert words in message


def test_the_hub_is_asked_for_the_config_first_and_for_weights_of_the_same_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    hub = Hub(write_model(snapshot))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    checkpoint = resolve_config("org/name", revision="main")
    assert hub.calls[0]["allow_patterns"] == ["config.json", "generation_config.json"]
    (snapshot / "model.safetensors").touch()
    assert checkpoint.download_weights() == [snapshot / "model.safetensors"]
    assert hub.calls[1]["revision"] == "0123abcd"
    assert "*.safetensors" in hub.calls[1]["allow_patterns"]
    assert not any(pattern.endswith((".py", ".bin")) for pattern in hub.calls[1]["allow_patterns"])


def test_offline_says_so_and_nothing_else(tmp_path: Path) -> None:
    """The real client, in a process of its own: it reads its environment when it is imported."""
    program = """
from pipelines.loading.checkpoint import resolve_config
try:
    resolve_config("org/name")
except ValueError as error:
    print(error)
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("there is no folder 'org/name'")
    assert "HF_HUB_OFFLINE" in done.stdout
    assert done.stdout.count("\n") == 1


DOWNLOAD = """
import os, pwd
if os.environ["HOME"] == "":  # as for a user whom the system does not know
    del os.environ["HOME"]
    def unknown(uid): raise KeyError(uid)
    pwd.getpwuid = unknown
from pipelines.loading.checkpoint import resolve_config
try:
    print(resolve_config("org/name").download_weights())
except ValueError as error:
    print(error)
"""


def message_of_download(**environment: str) -> str:
    """Message of the real client, in a process of its own: it reads its environment when it is imported."""
    run = [sys.executable, "-c", DOWNLOAD]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    done = subprocess.run(run, env=inherited | environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return done.stdout


COMMIT = "0123456789" * 4


@pytest.mark.parametrize("is_listed", [False, True])  # whether the client knows what else the model has
def test_a_cache_with_the_config_alone(tmp_path: Path, is_listed: bool) -> None:
    cache = tmp_path / "hub" / "models--org--name"
    snapshot = cache / "snapshots" / COMMIT
    for folder in (snapshot, cache / "refs", cache / "trees"):
        folder.mkdir(parents=True)
    write_model(snapshot)
    (cache / "refs" / "main").write_text(COMMIT)
    if is_listed:
        files = {name: {"size": 1, "blob_id": "0" * 40} for name in ("config.json", "model.safetensors")}
        (cache / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    message = message_of_download(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert "has config.json of 'org/name', but not its weights" in message
    assert "HF_HUB_OFFLINE forbids" in message


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx.ConnectError("x"), ["but not its weights", "the hub can't be reached: check the network"]),
        (errors.HfHubHTTPError("x", response=response(503)), ["the hub refused 'org/name' (HTTP 503)"]),
        (None, ["no safetensors files in"]),  # the hub has none either
    ],
)
def test_weights_that_are_not_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, expected: list[str]
) -> None:
    def model_info(api: object, repo_id: str, revision: str) -> SimpleNamespace:
        assert (repo_id, revision) == ("org/name", tmp_path.name)
        if error:
            raise error
        return SimpleNamespace(siblings=None)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(write_model(tmp_path)))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    message = refusal(resolve_config("org/name").download_weights)
    assert [words for words in expected if words not in message] == []


def test_no_home_for_the_cache_of_the_hub() -> None:
    message = message_of_download(HOME="", HF_ENDPOINT="http://127.0.0.1:1")
    assert "'org/name'" in message and "no home folder" in message and "HF_HOME" in message


def test_a_cache_of_the_hub_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    error = PermissionError(13, "Permission denied", "/.cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(error))
    message = refusal(lambda: resolve_config("org/name"))
    assert "'org/name'" in message and "/.cache (Permission denied)" in message and "HF_HOME" in message


def test_transformers_is_silent_about_the_lack_of_torch(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["torch"] = None
from pipelines.loading.checkpoint import resolve_config
print(resolve_config({str(write_model(tmp_path))!r}).huggingface_config.num_hidden_layers)
"""
    # Importing max anywhere in this process has set TRANSFORMERS_VERBOSITY, which a fresh one doesn't have.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFORMERS_")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_a_checkpoint_is_shown_without_its_config(tmp_path: Path) -> None:
    checkpoint = resolve_config(str(write_model(tmp_path)))
    assert isinstance(checkpoint, Checkpoint)
    assert "num_hidden_layers" not in repr(checkpoint)
