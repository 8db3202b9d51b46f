"""RoPE in GGUF files: scalings that the metadata names, and factors of the frequencies in the tensor rope_freqs.weight.

Source: llama.cpp's convert_hf_to_gguf.py, which writes both.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import InputError
from pipelines.loading.gguf.file import GgufModel

ROPE_FREQS = "rope_freqs.weight"
NOT_ROTATED = 1e30
"""The factor of frequencies that are not used: Gemma 4's full layers rotate a part of a head."""
LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR = 1.0, 4.0
"""Of Llama 3.1 and 3.2. The file has neither; other values with another length could give the same factors."""
TOLERANCE = 1e-4

Factors = npt.NDArray[np.float32]
RopeParameters = dict[str, Any]


def default_rope(theta: float) -> RopeParameters:
    """RoPE without scaling."""
    return {"rope_type": "default", "rope_theta": theta}


def scaled_rope(model: GgufModel, theta: float) -> RopeParameters:
    """Reads the scaling that the metadata names: none, linear or YaRN.

    Raises:
        InputError: It is another one, or an option is missing.
    """
    prefix, metadata = f"{model.architecture}.rope.scaling", model.metadata
    scaling = metadata.text(f"{prefix}.type", "none")
    if scaling == "none":
        return default_rope(theta)
    if scaling not in ("linear", "yarn"):
        raise InputError(f"{prefix}.type in {model.name} is '{scaling}', which is not supported (linear and yarn are)")
    rope: RopeParameters = {"rope_type": scaling, "rope_theta": theta, "factor": metadata.number(f"{prefix}.factor")}
    if scaling == "linear":
        return rope
    rope["original_max_position_embeddings"] = metadata.count(f"{prefix}.original_context_length")
    options = {
        "attention_factor": "yarn_attn_factor",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }
    present = {name: f"{prefix}.{key}" for name, key in options.items() if f"{prefix}.{key}" in metadata}
    return rope | {name: metadata.number(key) for name, key in present.items()}


def llama3_rope(model: GgufModel, theta: float, head_dim: int) -> RopeParameters:
    """Finds the scaling of Llama 3.1 whose factors the file holds; without factors, that of the metadata.

    The file has the factors alone: the largest is `factor`, and the length follows from one between the two bounds.

    Raises:
        InputError: The factors are not those of such a scaling.
    """
    factors = _factors(model, head_dim)
    if factors is None:
        return scaled_rope(model, theta)
    if np.isfinite(factors).all() and factors.min() == 1 and factors.max() > 1:
        rope: RopeParameters = {
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": float(factors.max()),
            "low_freq_factor": LOW_FREQ_FACTOR,
            "high_freq_factor": HIGH_FREQ_FACTOR,
            "original_max_position_embeddings": _original_length(factors, _wavelengths(theta, head_dim)),
        }
        if np.allclose(llama3_factors(rope, head_dim), factors, rtol=TOLERANCE):
            return rope
    raise InputError(f"tensor '{ROPE_FREQS}' in {model.name} does not hold the factors of Llama 3.1's RoPE scaling")


def llama3_factors(rope: RopeParameters, head_dim: int) -> Factors:
    """Computes what the converter writes: by how much each frequency is divided, [head_dim / 2]."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    num_turns = rope["original_max_position_embeddings"] / _wavelengths(rope["rope_theta"], head_dim)
    kept = np.clip((num_turns - low) / (high - low), 0, 1)
    return (1 / ((1 - kept) / factor + kept)).astype(np.float32)


def rotated_fraction(model: GgufModel, head_dim: int) -> float:
    """Returns the part of a head that Gemma 4's full layers rotate, from the factors; 1 without factors.

    Raises:
        InputError: The factors are others than 1 for rotated frequencies, then 1e30 for the rest.
    """
    factors = _factors(model, head_dim)
    if factors is None:
        return 1.0
    num_rotated = int(np.count_nonzero(factors == 1))
    if not (factors[:num_rotated] == 1).all() or not (factors[num_rotated:] >= NOT_ROTATED / 2).all():
        raise InputError(f"tensor '{ROPE_FREQS}' in {model.name} holds other factors than 1 and, at its end, 1e30")
    return 2 * num_rotated / head_dim


def _factors(model: GgufModel, head_dim: int) -> Factors | None:
    """Returns the factors, [head_dim / 2]; None if the file has none."""
    tensor = model.tensors.get(ROPE_FREQS)
    if tensor is None:
        return None
    if tensor.type_name != "f32" or tensor.shape != (head_dim // 2,):
        raise InputError(
            f"tensor '{ROPE_FREQS}' in {model.name} is {tensor.type_name} {list(tensor.shape)}: "
            f"it must be f32 [{head_dim // 2}]"
        )
    return np.asarray(model.tensor(ROPE_FREQS).data)


def _wavelengths(theta: float, head_dim: int) -> npt.NDArray[np.float64]:
    """Positions of a whole turn, without scaling, [head_dim / 2]."""
    return 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)


def _original_length(factors: Factors, wavelengths: npt.NDArray[np.float64]) -> int:
    """Length for which the scaling was made: exactly, if a factor lies between the bounds; else one that fits."""
    factor = float(factors.max())
    between = (factors > 1) & (factors < factor)
    if not between.any():  # all frequencies are kept or divided: any length between the two kinds does
        divided = wavelengths[factors == factor]
        return max(1, math.ceil(LOW_FREQ_FACTOR * float(divided.min())) - 1)
    kept = (1 / factors[between].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    lengths = wavelengths[between] * (LOW_FREQ_FACTOR + kept * (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR))
    return round(float(np.median(lengths)))
