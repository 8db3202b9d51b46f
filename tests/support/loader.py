"""The type of the `load` fixture."""

from __future__ import annotations

from collections.abc import Callable

from pipelines import TextGenerationPipeline

Loader = Callable[..., TextGenerationPipeline]
"""(name of a checkpoint, **fields of PipelineConfig) -> a pipeline, loaded once for each configuration."""
