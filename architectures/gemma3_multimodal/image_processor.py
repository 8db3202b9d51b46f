"""Gemma 3's processing of images: their pixel values, and their tokens in the text.

The pixel values are those of transformers' processor that needs Pillow and numpy only. Reference for the text:
transformers' processing_gemma3.py.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.errors import InputError
from pipelines.quiet import quiet

CONFIG_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENS = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
"""Tokens of images: their names in tokenizer_config.json, and their values in the published models."""


@dataclass(frozen=True)
class ProcessedImage:
    """One image as the vision tower takes it.

    pixel_values: [3, image_size, image_size] float32. image_hash: the SHA-256 of these.
    """

    pixel_values: npt.NDArray[np.float32]
    image_hash: bytes


@dataclass(frozen=True)
class ImageProcessor:
    """The image processor of one checkpoint.

    pixels: transformers' processor. placeholder: the text that stands for an image; expanded, it is followed by
    image_token, num_image_tokens times, and by eoi_token. image_token_id: the id of image_token.
    """

    pixels: Any
    placeholder: str
    image_token: str
    eoi_token: str
    image_token_id: int
    num_image_tokens: int

    @classmethod
    def from_checkpoint(cls, folder: Path, huggingface_config: Any) -> Self:
        """Reads the processor of a folder; without CONFIG_FILES or names of tokens, it has Gemma 3's own values.

        Raises:
            InputError: The files can't be used, ask for pan and scan, or make images of another size than the tower's.
        """
        tokens = _token_names(folder)
        return cls(
            pixels=_load_processor(folder, huggingface_config.vision_config.image_size),
            placeholder=tokens["boi_token"],
            image_token=tokens["image_token"],
            eoi_token=tokens["eoi_token"],
            image_token_id=huggingface_config.image_token_id,
            num_image_tokens=huggingface_config.mm_tokens_per_image,
        )

    def process(self, image: Image.Image) -> ProcessedImage:
        """Resizes and normalizes an image of any size."""
        pixel_values = _pixel_values(self.pixels, image)
        return ProcessedImage(pixel_values, hashlib.sha256(pixel_values.tobytes()).digest())

    def expand_placeholders(self, text: str) -> str:
        """Replaces each placeholder by the tokens of an image and the text around them."""
        image = self.placeholder + self.image_token * self.num_image_tokens + self.eoi_token
        return text.replace(self.placeholder, f"\n\n{image}\n\n")


def _load_processor(folder: Path, image_size: int) -> Any:
    """Loads transformers' processor and tries it on an image of one pixel."""
    with quiet():
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        try:
            if any((folder / file).is_file() for file in CONFIG_FILES):
                pixels = Gemma3ImageProcessorPil.from_pretrained(folder, local_files_only=True, do_convert_rgb=True)
            else:
                side = {"height": image_size, "width": image_size}
                pixels = Gemma3ImageProcessorPil(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3)
            if pixels.do_pan_and_scan:
                raise ValueError("do_pan_and_scan true is not supported (false is)")
            shape, taken = list(_pixel_values(pixels, Image.new("RGB", (1, 1))).shape), [3, image_size, image_size]
            if shape != taken:
                raise ValueError(f"it makes images of shape {shape}, but the model takes {taken}")
        except Exception as error:  # wrong values raise errors of many types, in transformers and in Pillow
            raise InputError(f"{folder} has an image processor that can't be used: {error}") from error
    return pixels


def _pixel_values(pixels: Any, image: Image.Image) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(pixels(images=[image])["pixel_values"][0], np.float32)


def _token_names(folder: Path) -> dict[str, str]:
    """Reads the tokens around and of an image from tokenizer_config.json."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_bytes()) if file.is_file() else {}
    extra = config.get("extra_special_tokens")
    named = config | (extra if isinstance(extra, dict) else {})
    return TOKENS | {name: named[name] for name in TOKENS if isinstance(named.get(name), str)}
