"""The registration record of Gemma 3."""

from __future__ import annotations

from architectures.gemma3.model import Gemma3Model
from architectures.gemma3.model_config import ENCODINGS, Gemma3Config
from architectures.gemma3.weight_adapters import adapt_name
from pipelines.registry import SupportedArchitecture

gemma3 = SupportedArchitecture(
    name="Gemma3ForCausalLM",
    example_repo_ids=("google/gemma-3-270m-it", "google/gemma-3-1b-it"),
    encodings=ENCODINGS,
    config=Gemma3Config,
    pipeline_model=Gemma3Model,
    adapt_name=adapt_name,
)

gemma3_text_of_multimodal = SupportedArchitecture(
    name="Gemma3ForConditionalGeneration",
    example_repo_ids=("google/gemma-3-4b-it", "google/gemma-3-12b-it", "google/gemma-3-27b-it"),
    encodings=ENCODINGS,
    config=Gemma3Config,
    pipeline_model=Gemma3Model,
    adapt_name=adapt_name,
)

ARCHITECTURES = (gemma3, gemma3_text_of_multimodal)
