"""A random Gemma 3 that sees, small enough to compare every number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from published import FOLDERS
from tiny_models import COMMON, gemma3_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

BOI, EOI, IMAGE = 990, 991, 992
SPECIAL = {
    "<eos>": 1,
    "<bos>": 2,
    "<start_of_image>": BOI,
    "<end_of_image>": EOI,
    "<image_soft_token>": IMAGE,
    "<start_of_turn>": 993,
    "<end_of_turn>": 994,
}
NAMED_TOKENS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
IMAGE_SIZE = 56


def write_tiny_gemma3_multimodal(
    folder: Path, dtype: torch.dtype = torch.float32, config: Gemma3Config | None = None
) -> None:
    """Writes a whole checkpoint: weights, image processor, tokenizer."""
    model = Gemma3ForConditionalGeneration(config or tiny_config())
    randomize(model)
    model.to(dtype).save_pretrained(folder)
    write_image_processor(folder)
    write_tokenizer(folder)


def tiny_config() -> Gemma3Config:
    """Heads of 18 values, 8 x 8 patches of which 2 x 2 become a token; a text side with the traits of `gemma3`."""
    vision = SiglipVisionConfig(
        hidden_size=54,
        num_attention_heads=3,
        intermediate_size=100,
        num_hidden_layers=3,
        image_size=IMAGE_SIZE,
        patch_size=7,
        vision_use_head=False,
    )
    return Gemma3Config(
        text_config=gemma3_config(sliding_window=128),
        vision_config=vision,
        mm_tokens_per_image=16,
        boi_token_index=BOI,
        eoi_token_index=EOI,
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )


def write_gemma3_multimodal_for_gpus(folder: Path) -> None:
    """Writes one with the published heads of 72 values and patches of 14 pixels.

    Hopper's product compiles only for widths that are a multiple of 16, as the published ones are.
    """
    config = tiny_config()
    for name, value in {
        "hidden_size": 144,
        "num_attention_heads": 2,
        "intermediate_size": 272,
        "patch_size": 14,
    }.items():
        setattr(config.vision_config, name, value)
    config.mm_tokens_per_image = 4
    write_tiny_gemma3_multimodal(folder, torch.bfloat16, config)


def randomize(model: Gemma3ForConditionalGeneration) -> None:
    """A fresh model has constant norms and biases, in which bugs would hide; so they would in scores near zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        std = 0.06
        if "norm" in name or "bias" in name:
            std = 0.3
        elif "vision" in name and ("q_proj" in name or "k_proj" in name):
            std = 1.0
        torch.nn.init.normal_(parameter, std=std, generator=generator)


def write_image_processor(folder: Path, **changes: Any) -> None:
    """Writes the image settings of the published models, except for the size."""
    settings = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 16,
        "image_std": [0.5, 0.5, 0.5],
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | changes))
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_length": 16}))


def write_tokenizer(folder: Path) -> None:
    """Token n is the word "wn", but for the special ones; the chat template is the published models'."""
    names = {token_id: token for token, token_id in SPECIAL.items()}
    vocabulary = {names.get(i, f"w{i}"): i for i in range(COMMON["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="w3",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=NAMED_TOKENS,
        chat_template=(FOLDERS["google__gemma-3-4b-it"] / "chat_template.jinja").read_text(),
    ).save_pretrained(folder)
