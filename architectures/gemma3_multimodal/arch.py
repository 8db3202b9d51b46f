"""The registration record of Gemma 3 with images."""

from __future__ import annotations

from architectures.gemma3 import Gemma3Config
from architectures.gemma3_multimodal.image_processor import ImageProcessor
from architectures.gemma3_multimodal.model import Gemma3MultimodalModel
from architectures.gemma3_multimodal.weight_adapters import adapt
from pipelines.registry import SupportedArchitecture

gemma3_multimodal = SupportedArchitecture(
    name="Gemma3ForConditionalGeneration",
    sizes="4B, 12B, 27B",
    example_repo_ids=("google/gemma-3-4b-it", "google/gemma-3-12b-it", "google/gemma-3-27b-it"),
    encodings=Gemma3Config.encodings,
    config=Gemma3Config,
    pipeline_model=Gemma3MultimodalModel,
    weight_adapters={"safetensors": adapt},
    image_processor=ImageProcessor.from_checkpoint,
)

ARCHITECTURES = (gemma3_multimodal,)
