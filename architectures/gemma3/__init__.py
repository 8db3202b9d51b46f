"""Gemma 3 text (https://arxiv.org/abs/2503.19786)."""

from architectures.decoder.inputs import DecoderInputs as Gemma3Inputs
from architectures.gemma3.model import Gemma3Model
from architectures.gemma3.model_config import Gemma3Config

__all__ = ["Gemma3Config", "Gemma3Inputs", "Gemma3Model"]
