"""What compiled graphs follow from: each cause changes its own field, and nothing else does."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from max.driver import CPU

from pipelines import PipelineConfig
from pipelines.errors import InputError
from pipelines.loading.artifacts.identity import code_hash
from pipelines.loading.artifacts.target import cpu_features, set_target, target_of
from pipelines.loading.checkpoint import DEMO_FOLDER
from pipelines.opened_model import OpenedModel
from pipelines.stages import NullStages


def identity(**settings: Any) -> dict[str, str]:
    return OpenedModel.open(PipelineConfig(**settings), NullStages()).identity


def changed(**settings: Any) -> set[str]:
    """Names of the fields in which a run of the demo differs from the default one."""
    before, after = identity(), identity(**settings)
    assert before.keys() == after.keys() and all(isinstance(value, str) and value for value in after.values())
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, set()),
        ({"quantization_encoding": "float32"}, {"quantization_encoding", "head_encoding"}),
        ({"quantization_encoding": "bfloat16"}, set()),
        ({"head_encoding": "bfloat16"}, set()),
        ({"head_encoding": "float32"}, {"head_encoding"}),
        (
            {"quantization_encoding": "q8_0"},
            {"quantization_encoding", "head_encoding", "activation_encoding", "kv_cache_dtype"},
        ),
        (
            {"quantization_encoding": "q8_0", "activation_encoding": "float32"},
            {"quantization_encoding", "head_encoding"},
        ),
        ({"kv_cache_dtype": "float32"}, set()),
        ({"kv_cache_dtype": "int8"}, {"kv_cache_dtype"}),
        ({"max_length": 64, "max_batch_size": 2, "max_batch_tokens": 128, "kv_cache_memory": 2**24}, set()),
        ({"enable_prefix_caching": True, "enable_weight_cache": False, "generation_config": "none"}, set()),
    ],
)
def test_settings_change_the_fields_that_they_decide(settings: dict[str, Any], fields: set[str]) -> None:
    assert changed(**settings) == fields


def test_another_configuration_is_another_model(tmp_path: Path) -> None:
    model = shutil.copytree(DEMO_FOLDER, tmp_path / "copy")
    assert changed(model=model) == set()  # wherever it lies
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert changed(model=model) == {"config"}


def test_tensors_count_by_name_shape_and_type() -> None:
    opened = OpenedModel.open(PipelineConfig(), NullStages())
    before, names = opened.identity["weights"], list(opened.state_dict)
    opened.state_dict[names[0]] = opened.state_dict.pop(names[0])  # at the end
    assert opened.identity["weights"] == before
    opened.state_dict["lm_head.weight"] = opened.state_dict[names[0]]
    assert opened.identity["weights"] != before


def test_the_sources_of_the_architectures_package_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, single = tmp_path / "somebody", tmp_path / "alone.py"
    package.mkdir()
    for path in (package / "__init__.py", package / "kernel.mojo", single):
        path.write_text("1")
    monkeypatch.syspath_prepend(tmp_path)
    for name, file in (("somebody", package / "__init__.py"), ("alone", single)):
        module = ModuleType(name)
        module.__file__ = str(file)
        monkeypatch.setitem(sys.modules, name, module)
    modules = ["somebody.model", "alone", "builtins", "abc", "max.nn"]
    seen = {code_hash(modules)}
    assert code_hash(reversed(modules)) in seen
    for path in (package / "__init__.py", package / "kernel.mojo", single):
        path.write_text("2")
        assert code_hash(modules) not in seen
        seen.add(code_hash(modules))
    assert code_hash(["builtins"]) not in seen


CPUINFO = """processor : 0
flags : fpu sse4_2 avx512_vnni avx512f bmi2 amx_int8 hypervisor ibrs constant_tsc nx vaes sha_ni
processor : 1
flags : fpu
"""


def test_instruction_sets_count_and_what_the_kernel_says_does_not(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    expected = {"sse4_2", "avx512_vnni", "avx512f", "bmi2", "amx_int8", "vaes", "sha_ni"}
    assert cpu_features(tmp_path / "cpuinfo") - cpu_features(tmp_path / "nothing") == expected
    assert cpu_features(tmp_path / "nothing")  # the architecture is known anyway
    (tmp_path / "cpuinfo").write_text("Features : fp asimd sve2 i8mm cpuid evtstrm\n")
    assert cpu_features(tmp_path / "cpuinfo") >= {"fp", "asimd", "sve2", "i8mm"}
    assert not cpu_features(tmp_path / "cpuinfo") & {"cpuid", "evtstrm"}


def test_the_cpu_is_a_target() -> None:
    assert target_of([CPU()]) == "cpu"


@dataclass
class Gpu:
    """A GPU as MAX describes it."""

    api: str
    architecture_name: str
    is_host: bool = False


@pytest.mark.parametrize(
    ("api", "name", "target"),
    [
        ("cuda", "sm_90a", "cuda:sm_90"),
        ("cuda", "sm_90", "cuda:sm_90"),
        ("cuda", "sm_120f", "cuda:sm_120"),
        ("hip", "gfx90a", "hip:gfx90a"),
    ],
)
def test_a_gpu_is_a_target_whatever_instructions_its_compiler_chooses(api: str, name: str, target: str) -> None:
    gpu: Any = Gpu(api, name)
    assert target_of([gpu]) == target


@pytest.mark.parametrize("target", ["", "cuda", "cuda:", "sm_90a", "metal:", "gpu:0", "cuda:gfx942", "cuda:banana"])
def test_what_is_no_target_is_refused(target: str) -> None:
    with pytest.raises(InputError, match="write for example cuda:sm_90a or hip:gfx942"):
        set_target(target, 1)
