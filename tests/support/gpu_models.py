"""Random checkpoints for GPUs: small, with the heads and the multiples that the kernels of published models have.

MAX's flash attention has heads of 64, 128 and 256 values on Hopper, and of 72 in a vision tower; for others, as the 32
of tiny_models.py or the 512 of Gemma 4's full layers, it falls back to a kernel without tiles. All are in bfloat16, so
that no encoding rounds a weight.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_models import write, write_fp8
from tiny_multimodal import tiny_config, write_image_processor, write_tiny_gemma3_multimodal
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

COMMON: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
WINDOW = 256
SLIDING, FULL = "sliding_attention", "full_attention"


def gemma3_text_config() -> Gemma3TextConfig:
    """Heads of 256, one KV head, a window; head and embedding tied."""
    return Gemma3TextConfig(
        **COMMON | {"num_hidden_layers": 4, "num_key_value_heads": 1, "head_dim": 256},
        query_pre_attn_scalar=256,
        sliding_window=WINDOW,
        layer_types=[SLIDING, FULL, SLIDING, SLIDING],
        rope_parameters={
            SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
            FULL: {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
        },
    )


def gemma3(folder: Path) -> None:
    write(folder, Gemma3ForCausalLM(gemma3_text_config()), torch.bfloat16)


def gemma3_multimodal(folder: Path) -> None:
    """Vision heads of 72, patches of 14 pixels, four tokens an image."""
    config = tiny_config()
    changes = {"hidden_size": 144, "num_attention_heads": 2, "intermediate_size": 272, "patch_size": 14}
    for name, value in changes.items():
        setattr(config.vision_config, name, value)
    config.text_config, config.mm_tokens_per_image = gemma3_text_config(), 4
    config.tie_word_embeddings = True
    write_tiny_gemma3_multimodal(folder, torch.bfloat16, config)
    write_image_processor(folder, image_seq_length=4)
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_length": 4}))


def gemma4(folder: Path) -> None:
    """Heads of 256 and, in full layers, of 512; per-layer embeddings; three layers with KV sharing."""
    config = Gemma4TextConfig(
        **COMMON | {"num_hidden_layers": 6, "num_key_value_heads": 1, "head_dim": 256},
        global_head_dim=512,
        sliding_window=WINDOW,
        layer_types=[SLIDING, SLIDING, FULL] * 2,
        rope_parameters={
            SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
            FULL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
        },
        final_logit_softcapping=30.0,
        hidden_size_per_layer_input=32,
        vocab_size_per_layer_input=1000,
        num_kv_shared_layers=3,
        use_double_wide_mlp=True,
    )
    write(folder, Gemma4ForCausalLM(config), torch.bfloat16)
    _narrow_scores(folder / "model.safetensors")


def _narrow_scores(path: Path) -> None:
    """Scales QK-norms, since nothing else scales the scores of Gemma 4: with heads this wide they would be so large
    that bfloat16 leaves little of a probability.
    """
    tensors = load_file(path)
    for name in tensors:
        if "q_norm" in name or "k_norm" in name:
            tensors[name] = tensors[name] * 0.6
    save_file(tensors, path, {"format": "pt"})


def llama3(folder: Path) -> None:
    """Heads of 64, the scaled RoPE of Llama 3.1."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    config = LlamaConfig(**COMMON, head_dim=64, rope_parameters=rope)
    write(folder, LlamaForCausalLM(config), torch.bfloat16)


def qwen3(folder: Path) -> None:
    """Heads of 128; head and embedding tied."""
    write(folder, Qwen3ForCausalLM(Qwen3Config(**COMMON, head_dim=128, tie_word_embeddings=True)), torch.bfloat16)


def qwen3_moe(folder: Path) -> None:
    """Heads of 128, eight experts, two a token."""
    config = Qwen3MoeConfig(
        **COMMON, head_dim=128, moe_intermediate_size=128, num_experts=8, num_experts_per_tok=2, norm_topk_prob=True
    )
    write(folder, Qwen3MoeForCausalLM(config), torch.bfloat16)


def qwen3_fp8(folder: Path) -> None:
    """`qwen3` with its projections in float8."""
    write_fp8(qwen3, folder)


def qwen3_moe_fp8(folder: Path) -> None:
    """`qwen3_moe` with its projections and experts in float8."""
    write_fp8(qwen3_moe, folder)


GPU_MODELS = {
    function.__name__: function
    for function in (gemma3, gemma3_multimodal, gemma4, llama3, qwen3, qwen3_moe, qwen3_fp8, qwen3_moe_fp8)
}
