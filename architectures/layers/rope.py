"""Rotary position embeddings (https://arxiv.org/abs/2104.09864), as tables that are made on the host.

Every step is rounded to float32 where transformers' modeling_rope_utils.py rounds it: one unit in the last place of a
frequency is 7e-3 in a cosine at position 131,071. Powers and cosines are computed in float64 and rounded once, so that
a table depends neither on the machine nor on which of its rows are made together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Frequencies = npt.NDArray[np.float32]
"""Radians per position, of each pair of a head's values: [head_dim / 2]."""
Periods = npt.NDArray[np.float32]
"""Positions per radian, before any scaling: [head_dim / 2]."""

ONE = np.float32(1)


@dataclass(frozen=True)
class RopeParameters:
    """The RoPE of one layer type.

    theta: the base period. rope_type: the scaling of the frequencies. options: its parameters, as in config.json.
    """

    theta: float
    rope_type: str
    options: Mapping[str, Any]

    @classmethod
    def from_huggingface(cls, parameters: Mapping[str, Any], field: str) -> RopeParameters:
        """Reads one entry of `rope_parameters`.

        Raises:
            ValueError: The rope_type is not supported, or lacks an option; the message names the field.
        """
        rope_type = parameters.get("rope_type", "default")
        if rope_type not in ROPE_TYPES:
            raise ValueError(f"{field}.rope_type {rope_type!r} is not supported ({', '.join(ROPE_TYPES)} are)")
        factor = parameters.get("partial_rotary_factor", 1.0)
        if rope_type != "proportional" and factor != 1.0:
            raise ValueError(f"{field}.partial_rotary_factor {factor} is not supported with rope_type {rope_type!r}")
        rope = cls(float(parameters["rope_theta"]), rope_type, dict(parameters))
        try:
            rope.frequencies(64)
        except KeyError as missing:
            raise ValueError(f"{field} has no {missing}, which rope_type {rope_type!r} needs") from None
        return rope

    def frequencies(self, head_dim: int) -> Frequencies:
        """Scaled frequencies, [head_dim / 2]."""
        return ROPE_TYPES[self.rope_type](_periods(self.theta, head_dim), self.theta, self.options)

    @property
    def attention_factor(self) -> float:
        """Factor of all cosines and sines: 1, except for YaRN."""
        return _yarn_attention_factor(self.options) if self.rope_type == "yarn" else 1.0

    def table(self, num_positions: int, head_dim: int, first_position: int = 0) -> npt.NDArray[np.float32]:
        """Computes (cos, sin) pairs of the angle of each frequency, [num_positions - first_position, head_dim].

        The rows are those of the positions from `first_position` up to `num_positions`; they do not depend on whether a
        table is made at once or in parts.
        """
        positions = np.arange(first_position, num_positions).astype(np.float32)
        angles = np.outer(positions, self.frequencies(head_dim))
        pairs = np.empty((len(positions), head_dim // 2, 2), np.float32)
        np.cos(angles, out=pairs[..., 0], dtype=np.float64, casting="same_kind")
        np.sin(angles, out=pairs[..., 1], dtype=np.float64, casting="same_kind")
        if self.attention_factor != 1.0:
            pairs *= np.float32(self.attention_factor)
        return pairs.reshape(len(positions), head_dim)


def _periods(theta: float, head_dim: int) -> Periods:
    """Powers of theta, rounded correctly; those of torch's own `pow` may differ by one unit in the last place."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (float(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)


def _default(periods: Periods, theta: float, options: Mapping[str, Any]) -> Frequencies:
    return ONE / periods


def _linear(periods: Periods, theta: float, options: Mapping[str, Any]) -> Frequencies:
    """Linear scaling: positions are divided by the factor (https://arxiv.org/abs/2306.15595)."""
    return ONE / periods / np.float32(options["factor"])


def _proportional(periods: Periods, theta: float, options: Mapping[str, Any]) -> Frequencies:
    """Gemma 4: only a head's first pairs are rotated, with the frequencies that they have if all are."""
    num_rotated = int(options.get("partial_rotary_factor", 1.0) * (2 * len(periods)) // 2)
    frequencies = ONE / periods
    frequencies[num_rotated:] = 0
    return frequencies / np.float32(options.get("factor", 1.0))


def _llama3(periods: Periods, theta: float, options: Mapping[str, Any]) -> Frequencies:
    """Llama 3.1: frequencies of long waves are divided by the factor, of short waves kept, of others blended.

    torch divides a number by a tensor in two steps, each rounded: the reciprocal, then the product.
    """
    factor, low, high = (options[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    length = options["original_max_position_embeddings"]
    frequencies = ONE / periods
    wavelengths = ONE / frequencies * np.float32(2 * math.pi)
    num_turns = ONE / wavelengths * np.float32(length)
    kept = (num_turns - np.float32(low)) / np.float32(high - low)
    blended = (ONE - kept) * frequencies / np.float32(factor) + kept * frequencies
    is_long, is_short = wavelengths > np.float32(length / low), wavelengths < np.float32(length / high)
    return np.select([is_long, is_short], [frequencies / np.float32(factor), frequencies], blended)


def _yarn(periods: Periods, theta: float, options: Mapping[str, Any]) -> Frequencies:
    """YaRN (https://arxiv.org/abs/2309.00071): as for Llama 3, but blended by the index of the pair."""
    length, num_pairs = options["original_max_position_embeddings"], len(periods)

    def pair_that_turns(num_turns: float) -> float:
        return 2 * num_pairs * math.log(length / (num_turns * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_that_turns(options.get("beta_fast") or 32)
    high = pair_that_turns(options.get("beta_slow") or 1)
    if options.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * num_pairs - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(num_pairs, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = ONE - np.clip(ramp, 0, 1)
    return ONE / (np.float32(options["factor"]) * periods) * (ONE - kept) + ONE / periods * kept


def _yarn_attention_factor(options: Mapping[str, Any]) -> float:
    if (given := options.get("attention_factor")) is not None:
        return float(given)

    def mscale(weight: float) -> float:
        factor = options["factor"]
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    numerator, denominator = options.get("mscale"), options.get("mscale_all_dim")
    return mscale(numerator) / mscale(denominator) if numerator and denominator else mscale(1.0)


ROPE_TYPES: Mapping[str, Callable[[Periods, float, Mapping[str, Any]], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "proportional": _proportional,
}
"""Scalings of the frequencies by their names in config.json."""
