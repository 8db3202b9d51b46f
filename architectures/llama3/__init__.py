"""Llama 3.1 and 3.2 text (https://arxiv.org/abs/2407.21783)."""

from architectures.decoder.inputs import DecoderInputs as Llama3Inputs
from architectures.llama3.model import Llama3Model
from architectures.llama3.model_config import Llama3Config

__all__ = ["Llama3Config", "Llama3Inputs", "Llama3Model"]
