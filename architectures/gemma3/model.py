"""The Gemma 3 pipeline model."""

from __future__ import annotations

from typing import ClassVar

from architectures.decoder.model import DecoderModel
from architectures.gemma3.graph import build_graph
from architectures.gemma3.model_config import Gemma3Config


class Gemma3Model(DecoderModel):
    """Gemma 3 text, compiled."""

    model_config_cls: ClassVar[type[Gemma3Config]] = Gemma3Config
    config: Gemma3Config
    build_graph = staticmethod(build_graph)
