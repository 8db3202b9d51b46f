"""Language-model pipelines on the MAX graph compiler.

from pipelines import PipelineConfig, SamplingParams, load_pipeline

with load_pipeline(PipelineConfig(model="google/gemma-3-1b-it")) as pipe:
    print(pipe.generate("Once upon a time", SamplingParams(max_new_tokens=50))[0].text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipelines.config import PipelineConfig
from pipelines.errors import InputError
from pipelines.sampling.params import SamplingParams

if TYPE_CHECKING:
    from pipelines.context import TextChunk
    from pipelines.load import load_pipeline
    from pipelines.media.images import load_image
    from pipelines.text.prompts import ImagePrompt
    from pipelines.text_generation import GenerationOutput, TextGenerationPipeline

__all__ = [
    "GenerationOutput",
    "ImagePrompt",
    "InputError",
    "PipelineConfig",
    "SamplingParams",
    "TextChunk",
    "TextGenerationPipeline",
    "load_image",
    "load_pipeline",
]


MODULES = {"load_image": "pipelines.media.images", "load_pipeline": "pipelines.load"}


def __getattr__(name: str) -> Any:
    """Imports names that need MAX when they are first used: `pipelines --help` must not wait for MAX."""
    if name not in __all__:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
    module = import_module(MODULES.get(name, "pipelines.text_generation"))
    return getattr(module, name)
