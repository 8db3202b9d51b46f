"""Checkpoints and pipelines that tests share: a compiled graph costs minutes, so there are few distinct ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from loader import Loader
from reference import Reference
from tiny_multimodal import write_tiny_gemma3_multimodal
from transformers.utils.logging import disable_progress_bar

from pipelines import PipelineConfig, TextGenerationPipeline, load_pipeline
from pipelines.loading.checkpoint import DEMO_FOLDER

disable_progress_bar()  # what transformers writes on stderr would mix with what commands do

WRITERS = {"gemma3_multimodal": write_tiny_gemma3_multimodal}
REFERENCE_OF = {"qwen3_fp8": "qwen3_fp8_twin"}


class OnDemand(dict[str, Any]):
    """What a function gives for a name, made once."""

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
