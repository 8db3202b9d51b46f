"""Llama 3.1 and 3.2 text (https://arxiv.org/abs/2407.21783)."""

from architectures.llama3.model import Llama3Model
from architectures.llama3.model_config import Llama3Config
from pipelines.decoder_inputs import DecoderInputs as Llama3Inputs

__all__ = ["Llama3Config", "Llama3Inputs", "Llama3Model"]
