"""The Llama 3 pipeline model."""

from __future__ import annotations

from typing import ClassVar

from architectures.decoder.model import DecoderModel
from architectures.llama3.graph import build_graph
from architectures.llama3.model_config import Llama3Config


class Llama3Model(DecoderModel):
    """Llama 3, compiled."""

    model_config_cls: ClassVar[type[Llama3Config]] = Llama3Config
    build_graph = staticmethod(build_graph)
