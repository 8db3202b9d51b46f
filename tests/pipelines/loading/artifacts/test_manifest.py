"""A folder of compiled graphs is used as it was written, for the run that it was made for, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from max.dtype import DType

from pipelines.errors import InputError
from pipelines.loading.artifacts.artifacts import Artifacts
from pipelines.loading.artifacts.manifest import FileRecord, GraphRecord, Manifest
from pipelines.loading.blocks import FORMATS
from pipelines.loading.encodings.float8_e4m3fn import Float8Config
from pipelines.loading.weight_spec import WeightSource, WeightSpec

RUN = {
    "architecture": "Gemma3ForCausalLM",
    "config": "c0ffee",
    "weights": "0123456789abcdef",
    "quantization_encoding": "q4_0",
    "head_encoding": "q8_0",
    "activation_encoding": "int8",
    "kv_cache_dtype": "float32",
    "devices": "cpu:0",
    "target": "cpu",
    "code": "fedcba9876543210",
    "max": "26.7.0",
}
FEATURES = frozenset({"x86_64", "avx2", "avx512f"})
SPECS = (
    WeightSpec("norm.weight", DType.float32, (WeightSource("norm.weight", (192,)),), is_on_host=True),
    WeightSpec(
        "up",
        FORMATS["q4_0"],
        (WeightSource("gate", (64, 192), 0, 2), WeightSource("up", (61, 192), 0, 61, padding=16)),
        1,
        2,
    ),
    WeightSpec(
        "down", DType.float8_e4m3fn, (WeightSource("down", (256, 128), 1),), quant_config=Float8Config((128, 128))
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two graphs and a library, with files of any content: nothing is compiled here, or run."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    for name in ("decoder.mef", "vision_tower.mef", "sampling.so"):
        (folder / name).write_bytes(f"the code of {name}".encode())
    records = {path.stem: FileRecord.of(path) for path in folder.iterdir()}
    graphs = {
        "decoder": GraphRecord(records["decoder"], SPECS),
        "vision_tower": GraphRecord(records["vision_tower"], SPECS[:1]),
    }
    Manifest(RUN, FEATURES, graphs, {"sampling": records["sampling"]}).write(folder)
    return folder


def refusal(folder: Path, run: dict[str, str] = RUN, features: frozenset[str] = FEATURES) -> str:
    with pytest.raises(InputError) as error:
        Artifacts.open(folder, run, features)
    assert "\n" not in str(error.value) and "artifacts (--artifacts)" in str(error.value)
    return str(error.value)


def test_what_was_written_is_read(folder: Path) -> None:
    artifacts = Artifacts.open(folder, dict(reversed(RUN.items())), FEATURES | {"amx_tile"})
    assert artifacts.names == ("decoder", "vision_tower")
    assert (artifacts.weights("decoder"), artifacts.weights("vision_tower")) == (SPECS, SPECS[:1])
    assert set(artifacts.manifest.libraries) == {"sampling"}


@pytest.mark.parametrize("field", RUN)
def test_another_run_is_refused_with_what_was_found_and_what_is_needed(folder: Path, field: str) -> None:
    message = refusal(folder, RUN | {field: "other"})
    assert f"{field} is {RUN[field]}, and other is needed" in message
    assert not any(f"{name} is " in message for name in RUN if name != field)


def test_all_that_differs_is_named(folder: Path) -> None:
    message = refusal(folder, RUN | {"target": "cuda:sm_90a", "devices": "gpu:0"}, FEATURES - {"avx512f"})
    assert "target is cpu, and cuda:sm_90a is needed" in message and "devices is cpu:0, and gpu:0 is needed" in message
    assert "cpu has no avx512f" in message


@pytest.mark.parametrize("missing", sorted(FEATURES))
def test_a_cpu_without_an_instruction_set_is_refused(folder: Path, missing: str) -> None:
    assert f"cpu has no {missing}, which" in refusal(folder, features=FEATURES - {missing} | {"neon"})


def test_a_field_that_one_side_does_not_know_is_a_difference(folder: Path) -> None:
    assert "vocabulary is unknown, and 1 is needed" in refusal(folder, RUN | {"vocabulary": "1"})
    assert "max is 26.7.0, and unknown is needed" in refusal(folder, {n: v for n, v in RUN.items() if n != "max"})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FILES = ("decoder.mef", "vision_tower.mef", "sampling.so")
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "No such file"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, not"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"0"), "bytes, not"),
    "one bit": (flip, "checksum"),
    "a folder": (become_folder, "Is a directory"),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_by_name(folder: Path, file: str, damage: str) -> None:
    change, words = DAMAGE[damage]
    change(folder / file)
    message = refusal(folder)
    assert f"{folder / file} is damaged" in message and words in message and "compile them again" in message


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def weights_of(content: dict[str, Any]) -> Any:
    return content["graphs"]["decoder"]["weights"]


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "another format": lambda c: c.update(format=2),
    "no format": lambda c: c.pop("format"),
    "no run": lambda c: c.pop("run"),
    "a run that is a list": lambda c: c.update(run=["cpu"]),
    "no libraries": lambda c: c.pop("libraries"),
    "a name that is a path": lambda c: c["graphs"].update({"../decoder": c["graphs"].pop("decoder")}),
    "an absolute name": lambda c: c["libraries"].update({"/tmp/x": c["libraries"].pop("sampling")}),
    "no checksum": lambda c: c["graphs"]["decoder"].pop("sha256"),
    "a checksum that is none": lambda c: c["graphs"]["decoder"].update(sha256="0"),
    "a size that is none": lambda c: c["graphs"]["decoder"].update(num_bytes="18"),
    "no weights": lambda c: c["graphs"]["decoder"].pop("weights"),
    "an unknown type": lambda c: weights_of(c)[0].update(stored_as="float128"),
    "a source without a shape": lambda c: weights_of(c)[0].update(sources=[["norm.weight"]]),
    "an unknown field": lambda c: weights_of(c)[0].update(color="red"),
}


@pytest.mark.parametrize("change", WRONG)
def test_a_manifest_that_says_something_else_is_refused(folder: Path, change: str) -> None:
    change_manifest(folder, WRONG[change])
    assert f"{folder / 'manifest.json'} is damaged" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert f"{folder / 'manifest.json'} is damaged" in refusal(folder)


def test_a_folder_without_a_manifest_is_refused_with_how_to_make_one(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").unlink()
    for wrong in (folder, tmp_path / "nowhere"):
        assert f"can't read {wrong / 'manifest.json'}" in refusal(wrong) and "pipelines compile" in refusal(wrong)
