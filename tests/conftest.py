"""Checkpoints and pipelines that tests share: a compiled graph costs minutes, so there are few distinct ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reference import Reference, write_tiny_gemma3

from pipelines import PipelineConfig, TextGenerationPipeline, load_pipeline
from pipelines.checkpoint import DEMO_FOLDER

Loader = Callable[..., TextGenerationPipeline]


@pytest.fixture(scope="session")
def tiny_gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 3 with the traits that the demo lacks."""
    return write_tiny_gemma3(tmp_path_factory.mktemp("tiny-gemma3"))


@pytest.fixture(scope="session")
def checkpoints(tiny_gemma3: Path) -> dict[str, Path]:
    return {"demo": DEMO_FOLDER, "tiny": tiny_gemma3}


@pytest.fixture(scope="session")
def references(checkpoints: dict[str, Path]) -> dict[str, Reference]:
    """The same models in transformers, float32, eager attention."""
    return {name: Reference(path) for name, path in checkpoints.items()}


@pytest.fixture(scope="session")
def load(checkpoints: dict[str, Path]) -> Iterator[Loader]:
    """Loads a pipeline of one of the checkpoints, once for each configuration."""
    pipes: list[TextGenerationPipeline] = []

    @functools.cache
    def load_once(name: str, **settings: Any) -> TextGenerationPipeline:
        pipes.append(load_pipeline(PipelineConfig(model=str(checkpoints[name]), **settings)))
        return pipes[-1]

    yield load_once
    for pipe in pipes:
        pipe.close()
