"""Rotary position embeddings (https://arxiv.org/abs/2104.09864), as tables made on the host.

The angles are float32 products of float32 frequencies, as in transformers' modeling_rope_utils.py: at position
10,000 an exact table would differ from theirs in the fourth digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Frequencies = npt.NDArray[np.float32]
"""[head_dim / 2]: radians a position, of each pair of a head's values."""


@dataclass(frozen=True)
class RopeParameters:
    """theta: the base period. rope_type: how the frequencies are scaled, with the `options` that this kind takes."""

    theta: float
    rope_type: str
    options: Mapping[str, Any]

    @classmethod
    def from_huggingface(cls, parameters: Mapping[str, Any], field: str) -> RopeParameters:
        """From one entry of `rope_parameters`.

        Raises:
            ValueError: A kind of scaling that is not built, or one that lacks an option, naming the field.
        """
        kind = parameters.get("rope_type", "default")
        if kind not in ROPE_TYPES:
            raise ValueError(f"{field}.rope_type {kind!r} is not supported ({', '.join(ROPE_TYPES)} are)")
        factor = parameters.get("partial_rotary_factor", 1.0)
        if kind != "proportional" and factor != 1.0:
            raise ValueError(f"{field}.partial_rotary_factor {factor} is not supported with rope_type {kind!r}")
        rope = cls(float(parameters["rope_theta"]), kind, dict(parameters))
        try:
            rope.frequencies(64)
        except KeyError as missing:
            raise ValueError(f"{field} has no {missing}, which rope_type {kind!r} needs") from None
        return rope

    def frequencies(self, head_dim: int) -> Frequencies:
        return ROPE_TYPES[self.rope_type](_unscaled(self.theta, head_dim), self.theta, self.options)

    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by: 1, but for YaRN."""
        return _yarn_attention_factor(self.options) if self.rope_type == "yarn" else 1.0

    def table(self, num_positions: int, head_dim: int) -> npt.NDArray[np.float32]:
        """[num_positions, head_dim]: (cos, sin) pairs of the angle of each frequency."""
        angles = np.outer(np.arange(num_positions, dtype=np.float32), self.frequencies(head_dim))
        pairs = np.empty((num_positions, head_dim // 2, 2), np.float32)
        np.cos(angles, out=pairs[..., 0])
        np.sin(angles, out=pairs[..., 1])
        if self.attention_factor != 1.0:
            pairs *= np.float32(self.attention_factor)
        return pairs.reshape(num_positions, head_dim)


def _unscaled(theta: float, head_dim: int) -> Frequencies:
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (1.0 / theta ** exponents.astype(np.float64)).astype(np.float32)


def _linear(frequencies: Frequencies, theta: float, options: Mapping[str, Any]) -> Frequencies:
    """Positions are divided by the factor (https://arxiv.org/abs/2306.15595)."""
    return frequencies / np.float32(options["factor"])


def _proportional(frequencies: Frequencies, theta: float, options: Mapping[str, Any]) -> Frequencies:
    """Gemma 4: a head's first pairs turn as they would if all did, the others stand still."""
    num_turning = int(options.get("partial_rotary_factor", 1.0) * len(frequencies))
    turning = np.where(np.arange(len(frequencies)) < num_turning, frequencies, 0).astype(np.float32)
    return turning / np.float32(options.get("factor", 1.0))


def _llama3(frequencies: Frequencies, theta: float, options: Mapping[str, Any]) -> Frequencies:
    """Llama 3.1: long waves are divided by the factor, short ones kept, those between are blended."""
    factor, low, high = (options[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    wavelengths = np.float32(2 * math.pi) / frequencies
    turns = np.float32(options["original_max_position_embeddings"]) / wavelengths
    kept = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1)
    return (1 - kept) * frequencies / np.float32(factor) + kept * frequencies


def _yarn(frequencies: Frequencies, theta: float, options: Mapping[str, Any]) -> Frequencies:
    """YaRN (https://arxiv.org/abs/2309.00071): as Llama 3, but blended over the index of the pair."""
    length, num_pairs = options["original_max_position_embeddings"], len(frequencies)

    def pair_that_turns(num_turns: float) -> float:
        return num_pairs * math.log(length / (num_turns * 2 * math.pi)) / math.log(theta)

    low = pair_that_turns(options.get("beta_fast") or 32)
    high = pair_that_turns(options.get("beta_slow") or 1)
    if options.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * num_pairs - 1)
    ramp = (np.arange(num_pairs, dtype=np.float32) - low) / ((high - low) or 0.001)
    kept = (1 - np.clip(ramp, 0, 1)).astype(np.float32)
    return frequencies / np.float32(options["factor"]) * (1 - kept) + frequencies * kept


def _yarn_attention_factor(options: Mapping[str, Any]) -> float:
    if (given := options.get("attention_factor")) is not None:
        return float(given)

    def mscale(weight: float) -> float:
        factor = options["factor"]
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    numerator, denominator = options.get("mscale"), options.get("mscale_all_dim")
    return mscale(numerator) / mscale(denominator) if numerator and denominator else mscale(1.0)


ROPE_TYPES: Mapping[str, Callable[[Frequencies, float, Mapping[str, Any]], Frequencies]] = {
    "default": lambda frequencies, theta, options: frequencies,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "proportional": _proportional,
}
"""By the name in config.json."""
