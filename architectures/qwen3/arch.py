"""The registration records of Qwen 3."""

from __future__ import annotations

from architectures.qwen3.model import Qwen3Model
from architectures.qwen3.model_config import Qwen3Config
from architectures.qwen3.weight_adapters import adapt, adapt_gguf
from pipelines.registry import SupportedArchitecture

qwen3 = SupportedArchitecture(
    name="Qwen3ForCausalLM",
    sizes="0.6B to 32B",
    example_repo_ids=(
        *(f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B")),
        "Qwen/Qwen3-4B-Instruct-2507",
        "Qwen/Qwen3-8B-FP8",
        "Qwen/Qwen3-32B-FP8",
    ),
    encodings=Qwen3Config.encodings,
    config=Qwen3Config,
    pipeline_model=Qwen3Model,
    weight_adapters={"safetensors": adapt, "gguf": adapt_gguf},
)

qwen3_moe = SupportedArchitecture(
    name="Qwen3MoeForCausalLM",
    sizes="30B-A3B",
    example_repo_ids=("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B-FP8"),
    encodings=Qwen3Config.encodings,
    config=Qwen3Config,
    pipeline_model=Qwen3Model,
    weight_adapters={"safetensors": adapt, "gguf": adapt_gguf},
)

ARCHITECTURES = (qwen3, qwen3_moe)
