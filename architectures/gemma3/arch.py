"""The registration record of Gemma 3."""

from __future__ import annotations

from architectures.gemma3.model import Gemma3Model
from architectures.gemma3.model_config import Gemma3Config
from architectures.gemma3.weight_adapters import adapt, adapt_gguf
from pipelines.registry import SupportedArchitecture

gemma3 = SupportedArchitecture(
    name="Gemma3ForCausalLM",
    sizes="270M, 1B",
    example_repo_ids=("google/gemma-3-270m-it", "google/gemma-3-1b-it"),
    encodings=Gemma3Config.encodings,
    config=Gemma3Config,
    pipeline_model=Gemma3Model,
    weight_adapters={"safetensors": adapt, "gguf": adapt_gguf},
)

ARCHITECTURES = (gemma3,)
