"""Checkpoints and pipelines that tests share: a compiled graph costs minutes, so there are few distinct ones."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import block_models
import pytest
import tiny_models
from loader import Loader
from max.engine import InferenceSession
from reference import Reference
from tiny_multimodal import write_gemma3_multimodal_for_gpus, write_tiny_gemma3_multimodal
from transformers.utils.logging import disable_progress_bar

from pipelines import PipelineConfig, TextGenerationPipeline, load_pipeline
from pipelines.loading.checkpoint import DEMO_FOLDER

disable_progress_bar()  # what transformers writes on stderr would mix with what commands do

WRITERS = {
    "qwen3_gguf": block_models.qwen3_gguf,
    "qwen3_gguf_twin": block_models.qwen3_gguf_twin,
    "gemma3_multimodal": write_tiny_gemma3_multimodal,
    "gemma3_multimodal_for_gpus": write_gemma3_multimodal_for_gpus,
}
GPU_GRAPHS_UNTIL = float(os.environ.get("GRAPH_PIPELINES_GPU_GRAPHS_UNTIL", "inf"))
"""When the last compilation for GPUs may begin, in seconds since 1970, where a run must end in time."""
REFERENCE_OF = {"qwen3_fp8": "qwen3_fp8_twin", "qwen3_gguf": "qwen3_gguf_twin"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what compiles a graph, for `make test-fast`: tests that use `load`, and those that compile for GPUs."""
    for item in items:
        if "load" in getattr(item, "fixturenames", ()) or item.get_closest_marker("gpu_compile"):
            item.add_marker("compiles")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what would compile graphs for GPUs when no time is left for it."""
    if item.get_closest_marker("gpu_compile") and time.time() > GPU_GRAPHS_UNTIL:
        pytest.skip("no time is left: make test-gpu-compile")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Fails a test that compiles a graph, itself or in a fixture, without the marker that says so."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("it compiles a graph: give it @pytest.mark.compiles")

    with pytest.MonkeyPatch.context() as patch:
        for name in () if item.get_closest_marker("compiles") else ("compile", "compile_async", "load", "load_all"):
            patch.setattr(InferenceSession, name, refuse)
        return (yield)


class OnDemand(dict[str, Any]):
    """Results of a function by name, each made once."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> Any:
        self[name] = self.make(name)
        return self[name]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The demo, and random checkpoints of tiny_models.py, each written when it is first asked for."""
    folder = tmp_path_factory.mktemp("models")

    def write(name: str) -> Path:
        if name == "demo":
            return DEMO_FOLDER
        write_model = WRITERS.get(name) or getattr(tiny_models, name)
        write_model(folder / name)
        return folder / name

    return OnDemand(write)


@pytest.fixture(scope="session")
def references(checkpoints: Mapping[str, Path]) -> Mapping[str, Reference]:
    """The same models in transformers, float32, eager attention."""
    return OnDemand(lambda name: Reference(checkpoints[REFERENCE_OF.get(name, name)]))


@pytest.fixture(scope="session")
def load(checkpoints: Mapping[str, Path]) -> Iterator[Loader]:
    """Loads a pipeline of one of the checkpoints, once for each configuration."""
    pipes: list[TextGenerationPipeline] = []

    @functools.cache
    def load_once(name: str, **settings: Any) -> TextGenerationPipeline:
        pipes.append(load_pipeline(PipelineConfig(model=str(checkpoints[name]), **settings)))
        return pipes[-1]

    yield load_once
    for pipe in pipes:
        pipe.close()
