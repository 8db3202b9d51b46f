"""The registration records of Gemma 4."""

from __future__ import annotations

from architectures.gemma4.model import Gemma4Model
from architectures.gemma4.model_config import PER_LAYER_TABLE, Gemma4Config
from architectures.gemma4.weight_adapters import adapt, adapt_gguf
from pipelines.registry import SupportedArchitecture

gemma4 = SupportedArchitecture(
    name="Gemma4ForCausalLM",
    sizes="E2B, E4B, 31B",
    example_repo_ids=(),
    encodings=Gemma4Config.encodings,
    config=Gemma4Config,
    pipeline_model=Gemma4Model,
    weight_adapters={"safetensors": adapt, "gguf": adapt_gguf},
    lookup_tables=(PER_LAYER_TABLE,),
)

gemma4_text_of_multimodal = SupportedArchitecture(
    name="Gemma4ForConditionalGeneration",
    sizes="E2B, E4B, 31B",
    example_repo_ids=("google/gemma-4-E2B-it", "google/gemma-4-E4B-it", "google/gemma-4-31B-it"),
    encodings=Gemma4Config.encodings,
    config=Gemma4Config,
    pipeline_model=Gemma4Model,
    weight_adapters={"safetensors": adapt, "gguf": adapt_gguf},
    lookup_tables=(PER_LAYER_TABLE,),
)

ARCHITECTURES = (gemma4, gemma4_text_of_multimodal)
