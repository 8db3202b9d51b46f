"""The Gemma 4 pipeline model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from max.graph.weights import WeightData

from architectures.decoder.model import DecoderModel
from architectures.gemma4.graph import build_graph
from architectures.gemma4.model_config import Gemma4Config
from pipelines.config import PipelineConfig
from pipelines.loading.weight_spec import TracedGraph
from pipelines.pipeline_model import ReturnLogits


class Gemma4Model(DecoderModel):
    """Gemma 4 text, compiled."""

    model_config_cls: ClassVar[type[Gemma4Config]] = Gemma4Config
    build_graph = staticmethod(build_graph)

    @classmethod
    def trace(
        cls,
        pipeline_config: PipelineConfig,
        huggingface_config: Any,
        weights: Mapping[str, WeightData],
        return_logits: ReturnLogits | str = ReturnLogits.VARIABLE,
        tables_on_device: bool = False,
    ) -> dict[str, TracedGraph]:
        config = cls._finalized_config(pipeline_config, huggingface_config, weights, return_logits)
        assert isinstance(config, Gemma4Config)
        config.tables_on_device = tables_on_device
        return cls.trace_graphs(config, huggingface_config)
