"""Rotary position embeddings (https://arxiv.org/abs/2104.09864), as tables made on the host.

The angles are float32 products of float32 frequencies, as in transformers' modeling_rope_utils.py: at position
10,000 an exact table would differ from theirs in the fourth digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RopeParameters:
    """theta: the base period. factor: positions are divided by it (linear scaling)."""

    theta: float
    factor: float = 1.0

    @classmethod
    def from_huggingface(cls, parameters: Mapping[str, Any], field: str) -> RopeParameters:
        """From one entry of `rope_parameters`.

        Raises:
            ValueError: A kind of scaling that is not built, naming the field.
        """
        kind = parameters.get("rope_type", "default")
        if kind not in ("default", "linear"):
            raise ValueError(f"{field}.rope_type {kind!r} is not supported (default and linear are)")
        return cls(float(parameters["rope_theta"]), float(parameters.get("factor", 1.0)) if kind == "linear" else 1.0)

    def table(self, num_positions: int, head_dim: int) -> npt.NDArray[np.float32]:
        """[num_positions, head_dim]: (cos, sin) pairs of the angle of each frequency."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = (1.0 / self.theta ** exponents.astype(np.float64)).astype(np.float32) / np.float32(self.factor)
        angles = np.outer(np.arange(num_positions, dtype=np.float32), frequencies)
        pairs = np.empty((num_positions, head_dim // 2, 2), np.float32)
        np.cos(angles, out=pairs[..., 0])
        np.sin(angles, out=pairs[..., 1])
        return pairs.reshape(num_positions, head_dim)
