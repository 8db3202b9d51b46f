"""The Gemma 4 pipeline model."""

from __future__ import annotations

from typing import ClassVar

from architectures.decoder.model import DecoderModel
from architectures.gemma4.graph import build_graph
from architectures.gemma4.model_config import Gemma4Config


class Gemma4Model(DecoderModel):
    """Gemma 4 text, compiled."""

    model_config_cls: ClassVar[type[Gemma4Config]] = Gemma4Config
    build_graph = staticmethod(build_graph)
