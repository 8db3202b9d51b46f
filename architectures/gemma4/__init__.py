"""Gemma 4 text: E2B and E4B with per-layer embeddings, and the dense 31B."""

from architectures.decoder.inputs import DecoderInputs as Gemma4Inputs
from architectures.gemma4.model import Gemma4Model
from architectures.gemma4.model_config import Gemma4Config

__all__ = ["Gemma4Config", "Gemma4Inputs", "Gemma4Model"]
