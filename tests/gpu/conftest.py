"""What the tests of tests/gpu share: a device, small models on it, and the same in transformers.

They need max, torch, transformers, pytest and this package on the path; nothing has to be installed or fetched.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gpu_models
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gpu_runs import DEVICES, DEVICES_VARIABLE, IS_GPU, TEXT_RUNS, Reference, Run, tf32, token_errors
from max.driver import Accelerator, accelerator_count
from tiny_models import dequantize
from transformers import Gemma3ForConditionalGeneration

from pipelines import PipelineConfig, TextGenerationPipeline, load_pipeline
from pipelines.registry import ENTRY_POINT_GROUP

ROOT = Path(__file__).parents[2]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
FILES = ("test_first_step", "test_logits", "test_generation", "test_random_work", "test_images")
MEASURED = pytest.StashKey[list[str]]()

GPULoader = Callable[..., TextGenerationPipeline]
"""(run, **fields of PipelineConfig) -> a pipeline, loaded once for each configuration."""
CheckErrors = Callable[[Run, list[int], npt.NDArray[np.float32]], None]
"""(run, tokens, logits [T, V]): compares with exact ones."""


def architectures() -> tuple[str, ...]:
    """The records of pyproject.toml: a package that is not installed has no entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return tuple(project["entry-points"][ENTRY_POINT_GROUP].values())


def pytest_report_header() -> list[str]:
    """Names what the tests run on."""
    lines = [f"tests/gpu on {DEVICES}: max {version('max')}, torch {torch.__version__}"]
    if IS_GPU and accelerator_count():
        stats = Accelerator(0).stats
        free, total = (int(stats[name]) / 2**30 for name in ("free_memory", "total_memory"))
        lines.append(f"{torch.cuda.get_device_name(0)}, {free:.1f} of {total:.1f} GiB free")
    return lines


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests of this folder, and skips them where there is no device."""
    config.stash[MEASURED] = []
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    lacking = IS_GPU and not accelerator_count()
    for item in here:
        item.add_marker("gpu")
        item.add_marker("compiles")
        item.add_marker(pytest.mark.filterwarnings("default"))  # whatever versions the machine has
        if lacking:
            reason = f"no GPU found; {DEVICES_VARIABLE}=cpu runs these tests on the CPU"
            item.add_marker(pytest.mark.skip(reason=reason))
    if len(here) == len(items):
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[bool, int, int]:
    """First the first step, then model by model, the most telling first: a lent GPU is there for minutes."""
    run = item.callspec.params.get("run") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    model = TEXT_RUNS.index(run) if run in TEXT_RUNS else len(TEXT_RUNS)
    return item.path.stem != "test_first_step", model, FILES.index(item.path.stem)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Lists the errors that were measured, of tests that passed too."""
    if lines := config.stash.get(MEASURED, []):
        terminalreporter.section("relative errors of logits")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def exact_products() -> Iterator[None]:
    """The references multiply float32 as float32."""
    with tf32(allowed=False):
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes the checkpoints of gpu_models.py, each when it is first asked for."""
    root = tmp_path_factory.mktemp("gpu_models")

    @functools.cache
    def write(name: str) -> Path:
        gpu_models.GPU_MODELS[name](root / name)
        return root / name

    return write


@pytest.fixture(scope="session")
def load_run(folders: Callable[[str], Path]) -> Iterator[GPULoader]:
    """Loads a pipeline, once for each configuration."""
    pipes: list[TextGenerationPipeline] = []

    @functools.cache
    def load_once(run: Run, **settings: Any) -> TextGenerationPipeline:
        fields: dict[str, Any] = {"max_length": 2048, "custom_architectures": architectures()}
        fields |= {"devices": DEVICES, "quantization_encoding": run.encoding} | settings
        pipes.append(load_pipeline(PipelineConfig(model=str(folders(run.name)), **fields)))
        return pipes[-1]

    yield load_once
    for pipe in pipes:
        pipe.close()


@pytest.fixture(scope="session")
def reference(folders: Callable[[str], Path]) -> Callable[[str, torch.dtype], Reference]:
    """The same models in transformers; float8 ones dequantized, by the weights of their original."""

    @functools.cache
    def load_once(name: str, dtype: torch.dtype) -> Reference:
        model_class: dict[str, Any] = {}
        if name == "gemma3_multimodal":
            model_class["model_class"] = Gemma3ForConditionalGeneration
        return Reference(str(dequantized(name, folders)), dtype, **model_class)

    return load_once


def dequantized(name: str, folders: Callable[[str], Path]) -> Path:
    """Folder of a checkpoint without float8."""
    if not name.endswith("fp8"):
        return folders(name)
    twin = folders(name).with_name(f"{name}_twin")
    if not twin.exists():
        gpu_models.GPU_MODELS[name](twin)
        dequantize(twin)
    return twin


@pytest.fixture(scope="session")
def exact_logits(
    reference: Callable[[str, torch.dtype], Reference],
) -> Callable[[str, tuple[int, ...]], npt.NDArray[np.float64]]:
    """(name, tokens) -> logits [T, V] in float64."""

    @functools.cache
    def compute(name: str, tokens: tuple[int, ...]) -> npt.NDArray[np.float64]:
        return reference(name, torch.float64).logits(list(tokens))

    return compute


@pytest.fixture
def check_errors(
    exact_logits: Callable[[str, tuple[int, ...]], npt.NDArray[np.float64]],
    reference: Callable[[str, torch.dtype], Reference],
    pytestconfig: pytest.Config,
) -> CheckErrors:
    """Compares logits with exact ones: each token's within the bound, with experts all but a few tokens'."""

    def check(run: Run, tokens: list[int], ours_TV: npt.NDArray[np.float32]) -> None:
        errors = token_errors(ours_TV, exact_logits(run.name, tuple(tokens)))
        bound = run.bound(reference(run.name, torch.float64).config.num_hidden_layers)
        median, largest = float(np.median(errors)), float(errors.max())
        line = f"{run}: {len(tokens)} tokens, median {median:.2e}, largest {largest:.2e}, bound {bound:.2e}"
        pytestconfig.stash[MEASURED].append(line)
        share = 0.85 if run.has_experts and IS_GPU else 1.0
        worst = int(errors.argmax())
        assert np.quantile(errors, share) <= bound, f"{line}, largest at token {worst}"

    return check
