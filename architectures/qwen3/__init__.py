"""Qwen 3 text, dense and with experts (https://arxiv.org/abs/2505.09388)."""

from architectures.decoder.inputs import DecoderInputs as Qwen3Inputs
from architectures.qwen3.model import Qwen3Model
from architectures.qwen3.model_config import Qwen3Config

__all__ = ["Qwen3Config", "Qwen3Inputs", "Qwen3Model"]
