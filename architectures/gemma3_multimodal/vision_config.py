"""The configuration of Gemma 3's vision graph.

Source: transformers' configuration_siglip.py and configuration_gemma3.py, whose names these are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from max.dtype import DType
from max.graph import DeviceRef

from architectures.layers.activations import ACTIVATIONS
from pipelines.loading.encoding import Encoding

FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
"""Fields that are copied from `vision_config`."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The configuration of one Gemma 3 vision tower, and of the projection of its output to tokens.

    image_size, patch_size: pixels per side. mm_tokens_per_image: tokens of an image. text_hidden_size: their width.
    dtype: of activations. encoding: of weight matrices. devices: those of the run; the tower lives on the first.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float
    mm_tokens_per_image: int
    text_hidden_size: int
    dtype: DType
    encoding: Encoding
    devices: tuple[DeviceRef, ...]

    @classmethod
    def from_huggingface(
        cls, huggingface_config: Any, dtype: DType, encoding: Encoding, devices: Sequence[DeviceRef]
    ) -> Self:
        """Creates the configuration from that of the whole model.

        Args:
            huggingface_config: The transformers configuration.
            dtype: Type of activations.
            encoding: Encoding of weight matrices.
            devices: The devices of the run.

        Raises:
            ValueError: The graph does not support a value; the message names field and value.
        """
        vision = huggingface_config.vision_config
        if vision.model_type != "siglip_vision_model":
            raise ValueError(
                f"vision_config.model_type {vision.model_type!r} is not supported (siglip_vision_model is)"
            )
        if vision.vision_use_head:
            raise ValueError("vision_config.vision_use_head true is not supported (false is)")
        config = cls(
            **{field: getattr(vision, field) for field in FIELDS},
            mm_tokens_per_image=huggingface_config.mm_tokens_per_image,
            text_hidden_size=huggingface_config.get_text_config().hidden_size,
            dtype=dtype,
            encoding=encoding,
            devices=tuple(devices),
        )
        config._refuse_unsupported()
        return config

    @property
    def activation_bytes(self) -> int:
        """Estimate of what one image takes on its way through the tower, in bytes."""
        widest = max(
            self.intermediate_size, 4 * self.hidden_size
        )  # of the MLP, or projections and what attention gives
        num_pixels = self.num_channels * self.image_size**2  # in float32, and as rows of patches
        size = self.dtype.size_in_bytes
        return self.patches_per_side**2 * (3 * self.hidden_size + widest) * size + num_pixels * (4 + 2 * size)

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def patches_per_side(self) -> int:
        """Number of patches along a side of an image."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_side(self) -> int:
        """Number of tokens along a side of an image."""
        return math.isqrt(self.mm_tokens_per_image)

    def _refuse_unsupported(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"vision_config.hidden_act {self.hidden_act!r} is not supported ({known} are)")
        for field in ("image_size", "patch_size"):
            if not isinstance(value := getattr(self, field), int):
                raise ValueError(f"vision_config.{field} {value} is not supported: one number, for a square, is")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"vision_config.image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise ValueError(f"vision_config.hidden_size {self.hidden_size} is not a multiple of the {heads} heads")
        tokens, side = self.mm_tokens_per_image, self.patches_per_side
        if tokens < 1 or self.tokens_per_side**2 != tokens or side % self.tokens_per_side:
            raise ValueError(f"mm_tokens_per_image {tokens} is no square that divides {side} x {side} patches evenly")
