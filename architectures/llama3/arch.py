"""The registration record of Llama 3."""

from __future__ import annotations

from architectures.decoder.weight_adapters import adapt_text
from architectures.llama3.model import Llama3Model
from architectures.llama3.model_config import Llama3Config
from architectures.llama3.weight_adapters import adapt_gguf
from pipelines.registry import SupportedArchitecture

llama3 = SupportedArchitecture(
    name="LlamaForCausalLM",
    sizes="1B, 8B",
    example_repo_ids=("meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
    encodings=Llama3Config.encodings,
    config=Llama3Config,
    pipeline_model=Llama3Model,
    weight_adapters={"safetensors": adapt_text, "gguf": adapt_gguf},
)

ARCHITECTURES = (llama3,)
