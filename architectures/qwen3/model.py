"""The Qwen 3 pipeline model."""

from __future__ import annotations

from typing import ClassVar

from architectures.decoder.model import DecoderModel
from architectures.qwen3.graph import build_graph
from architectures.qwen3.model_config import Qwen3Config


class Qwen3Model(DecoderModel):
    """Qwen 3, compiled."""

    model_config_cls: ClassVar[type[Qwen3Config]] = Qwen3Config
    build_graph = staticmethod(build_graph)
