"""Language-model pipelines on the MAX graph compiler.

from pipelines import PipelineConfig, SamplingParams, load_pipeline

with load_pipeline(PipelineConfig(model="google/gemma-3-1b-it")) as pipe:
    print(pipe.generate("Once upon a time", SamplingParams(max_new_tokens=50))[0].text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.config import PipelineConfig
from pipelines.errors import InputError
from pipelines.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pipelines.engine import TextChunk
    from pipelines.load import load_pipeline
    from pipelines.text_generation import GenerationOutput, TextGenerationPipeline

__all__ = [
    "GenerationOutput",
    "InputError",
    "PipelineConfig",
    "SamplingParams",
    "TextChunk",
    "TextGenerationPipeline",
    "load_pipeline",
]


def __getattr__(name: str) -> Any:
    """What needs MAX is imported when it is first asked for: `pipelines --help` must not wait for it."""
    if name == "load_pipeline":
        from pipelines.load import load_pipeline

        return load_pipeline
    if name in __all__:
        from pipelines import text_generation

        return getattr(text_generation, name)
    raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
