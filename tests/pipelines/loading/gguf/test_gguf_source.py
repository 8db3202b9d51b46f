"""GGUF files are found by path, in folders and on the hub, and what a folder lacks comes from the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf_models
import huggingface_hub
import pytest

from pipelines import PipelineConfig
from pipelines.errors import InputError
from pipelines.load import PreparedPipeline, prepare_pipeline
from pipelines.loading.checkpoint import resolve_config
from pipelines.loading.gguf.source import model_files
from pipelines.registry import Registry, SupportedArchitecture

COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def file(checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "qwen3.gguf"
    metadata: dict[str, Any] = {"general__sampling__top_k": 7, "tokenizer__chat_template": "{{ messages[0].content }}"}
    return gguf_models.write_checkpoint(checkpoints["qwen3"], path, **metadata)


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def prepared(**fields: Any) -> PreparedPipeline:
    run = PipelineConfig(max_length=64, kv_cache_memory=2**24, quantization_encoding="float32", **fields)
    return prepare_pipeline(run)


@pytest.mark.parametrize("field", ["model", "weight_path"])
def test_a_file_alone(file: Path, field: str) -> None:
    (file.parent / "config.json").write_text("{}")  # of another model: a folder of downloads
    pipe = prepared(**{field: file})
    assert (pipe.checkpoint.name, pipe.checkpoint.path, pipe.checkpoint.weights_format) == (str(file), file, "gguf")
    assert pipe.weight_paths == [file]
    assert pipe.sampling_defaults.top_k == 7
    assert pipe.prompts.is_instruction_model
    assert pipe.prompts.vocab_size == 1000
    assert pipe.checkpoint.config_source == f"the metadata of '{file}'"
    (file.parent / "config.json").unlink()


def test_the_weights_are_those_of_the_file(file: Path, checkpoints: Mapping[str, Path]) -> None:
    found, expected = prepared(model=file).state_dict, prepared(model=checkpoints["qwen3"]).state_dict
    assert found.keys() == expected.keys()


def test_a_folder_with_all_but_the_weights(file: Path, checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    for path in checkpoints["qwen3"].glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    pipe = prepared(model=tmp_path, weight_path=file)
    assert pipe.checkpoint.path == tmp_path
    assert pipe.prompts.tokenizer.encode("w5 w6") == [5, 6]  # the folder's tokenizer
    assert pipe.prompts.tokenizer.chat_template == "{{ messages[0].content }}"  # which has no template
    assert pipe.checkpoint.config_source == f"config.json of '{tmp_path}'"
    (tmp_path / "inside.gguf").write_bytes(file.read_bytes())
    for weight_path in (None, "inside.gguf"):
        assert prepared(model=tmp_path, weight_path=weight_path).weight_paths == [tmp_path / "inside.gguf"]
    (tmp_path / "model.safetensors").write_bytes((checkpoints["qwen3"] / "model.safetensors").read_bytes())
    assert prepared(model=tmp_path).checkpoint.weights_format == "safetensors"
    assert prepared(model=tmp_path, weight_path="inside.gguf").checkpoint.weights_format == "gguf"


def test_a_folder_of_gguf_files(file: Path, tmp_path: Path) -> None:
    (tmp_path / "mmproj-model-f16.gguf").write_bytes(b"not read")
    assert "no config.json" in refusal(lambda: resolve_config(str(tmp_path)))
    (tmp_path / "a.gguf").write_bytes(file.read_bytes())
    assert resolve_config(str(tmp_path)).download_weights() == [tmp_path / "a.gguf"]
    (tmp_path / "b.gguf").write_bytes(file.read_bytes())
    message = refusal(lambda: resolve_config(str(tmp_path)))
    assert message == f"{tmp_path} has 2 GGUF files: choose one with weight_path (--weight-path): a.gguf, b.gguf"
    assert resolve_config(str(tmp_path), weight_path="b.gguf").download_weights() == [tmp_path / "b.gguf"]


def test_names_of_models() -> None:
    names = ["m-00002-of-00002.gguf", "m-00001-of-00002.gguf", "x/q4.gguf", "mmproj-F16.gguf", "README.md"]
    assert model_files(names) == ["m-00001-of-00002.gguf", "x/q4.gguf"]


@pytest.mark.parametrize(
    ("model", "weight_path", "expected"),
    [
        (None, "nowhere.gguf", "there is no GGUF file 'nowhere.gguf'"),
        ("{folder}", "nowhere.gguf", "there is no GGUF file 'nowhere.gguf', and none in {folder}"),
        ("{file}", "{file}", "both model (--model) '{file}' and weight_path (--weight-path) are GGUF files"),
        ("nowhere.gguf", None, ""),
    ],
)
def test_files_that_there_are_not(
    file: Path, tmp_path: Path, model: str | None, weight_path: str | None, expected: str, monkeypatch: Any
) -> None:
    def answer(*_: Any, **__: Any) -> Any:
        raise huggingface_hub.errors.HFValidationError("x")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    names = {"folder": tmp_path, "file": file}
    given = [None if value is None else value.format(**names) for value in (model, weight_path)]
    assert expected.format(**names) in refusal(lambda: resolve_config(given[0], weight_path=given[1]))


def test_a_path_that_is_no_gguf_file() -> None:
    assert "weight_path (--weight-path) is 'x.safetensors'" in refusal(
        lambda: PipelineConfig(weight_path="x.safetensors")
    )
    assert PipelineConfig(weight_path=Path("x.gguf")).weight_path == "x.gguf"  # type: ignore[arg-type]


def test_config_json_of_another_model(file: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})
    )
    message = refusal(lambda: resolve_config(str(tmp_path), weight_path=str(file)))
    assert f"{file} is a model of type qwen3" in message
    assert "describes one of type gemma3_text" in message


def test_the_text_model_of_a_multimodal_config(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    """Files for llama.cpp hold the text model; the projector of images is another file."""
    gguf_models.write_checkpoint(checkpoints["gemma3"], tmp_path / "x.gguf")
    text = json.loads((checkpoints["gemma3"] / "config.json").read_text())
    config = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = resolve_config(str(tmp_path))
    assert checkpoint.architectures == ["Gemma3ForCausalLM"]
    assert checkpoint.huggingface_config.get_text_config().num_hidden_layers == 4


def test_an_architecture_without_an_adapter(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Registry.load().find(["Qwen3ForCausalLM"])
    adapters = {"safetensors": record.weight_adapters["safetensors"]}
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__} | {"weight_adapters": adapters}
    monkeypatch.setattr(Registry, "find", lambda self, names: SupportedArchitecture(**fields))
    assert "Qwen3ForCausalLM can't be read from gguf files, only safetensors" in refusal(lambda: prepared(model=file))


class Hub:
    """Stands in for the hub: a folder of files, of which the requested ones are copied to the cache."""

    def __init__(self, files: Mapping[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files, self.snapshot, self.fetched = files, cache / "snapshots" / COMMIT, set[str]()
        self.snapshot.mkdir(parents=True)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda api, repo_id, revision: self.info())

    def info(self) -> Any:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def download(self, repo_id: str, allow_patterns: list[str], ignore_patterns: list[str], **_: Any) -> str:
        for name, content in self.files.items():
            is_asked = any(fnmatch(name, pattern) for pattern in allow_patterns)
            if is_asked and not any(fnmatch(name, pattern) for pattern in ignore_patterns):
                self.fetched.add(name)
                path = self.snapshot / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
        return str(self.snapshot)


def test_the_only_file_of_a_repository(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"m.gguf": file.read_bytes(), "mmproj.gguf": b"", "README.md": b""}
    hub = Hub(files, tmp_path, monkeypatch)
    checkpoint = resolve_config("org/name")
    assert checkpoint.download_weights() == [hub.snapshot / "m.gguf"]
    assert hub.fetched == {"m.gguf"}
    assert checkpoint.huggingface_config.num_hidden_layers == 3


def test_a_file_of_a_repository(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"q4/m.gguf": file.read_bytes(), "q8.gguf": b"", "tokenizer.json": b"{}", "config.json": b"{}"}
    hub = Hub(files | {"x/tokenizer.json": b""}, tmp_path, monkeypatch)
    checkpoint = resolve_config("org/name", weight_path="q4/m.gguf")
    assert checkpoint.download_weights() == [hub.snapshot / "q4/m.gguf"]
    assert hub.fetched == {"q4/m.gguf", "tokenizer.json", "config.json"}


def test_a_local_file_with_a_repository(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub({"model.safetensors": b"", "README.md": b""}, tmp_path, monkeypatch)
    assert resolve_config("org/name", weight_path=str(file)).download_weights() == [file]
    assert not hub.fetched


@pytest.mark.parametrize("has_config", [False, True])
def test_several_files_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_config: bool) -> None:
    files = {f"{number:02}.gguf": b"" for number in range(22)} | ({"config.json": b'{"a": 1}'} if has_config else {})
    hub = Hub(files, tmp_path, monkeypatch)
    message = refusal(lambda: resolve_config("org/name").download_weights())
    assert message.startswith(
        "'org/name' has 22 GGUF files: choose one with weight_path (--weight-path): 00.gguf, 01.gguf, "
    )
    assert message.endswith("19.gguf and 2 more")
    assert not any(name.endswith(".gguf") for name in hub.fetched)


def test_a_file_that_the_repository_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub({"a.gguf": b""}, tmp_path, monkeypatch)
    message = refusal(lambda: resolve_config("org/name", weight_path="b.gguf"))
    assert message == "'org/name' has no file 'b.gguf': its GGUF files are a.gguf"


def test_shards_of_a_repository(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"q[4]-{number:05}-of-00002.gguf" for number in (1, 2)]
    hub = Hub(dict.fromkeys([*names, "other.gguf"], b"damaged"), tmp_path, monkeypatch)
    assert "doesn't begin with GGUF" in refusal(lambda: resolve_config("org/name", weight_path=names[1]))
    assert hub.fetched == set(names)
