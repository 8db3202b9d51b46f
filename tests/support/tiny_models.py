"""Random checkpoints with a model's traits, small enough to compare every logit: one function a variant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

COMMON: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 8192,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


EXPERTS = {"moe_intermediate_size": 48, "num_experts": 6, "num_experts_per_tok": 3}


def gemma3_config(**traits: Any) -> Gemma3TextConfig:
    """A head of its own, biases, scaled RoPE, a scale that is not head_dim's, one KV head."""
    return Gemma3TextConfig(
        **COMMON | {"num_hidden_layers": 4, "num_key_value_heads": 1},
        query_pre_attn_scalar=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
        },
        attention_bias=True,
        tie_word_embeddings=False,
        **traits,
    )


def gemma3(folder: Path) -> None:
    """Soft-capped logits too."""
    write(folder, Gemma3ForCausalLM(gemma3_config(sliding_window=256, final_logit_softcapping=5.0)))


def llama3(folder: Path) -> None:
    """The scaled RoPE of Llama 3.1, its boundaries between the frequencies of these heads; stored in bfloat16."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    write(folder, LlamaForCausalLM(LlamaConfig(**COMMON, rope_parameters=rope)), torch.bfloat16)


def llama3_odd_vocabulary(folder: Path) -> None:
    """A vocabulary that no number of devices divides, its head tied; stored in float32."""
    config = LlamaConfig(**COMMON | {"vocab_size": 1003}, tie_word_embeddings=True)
    write(folder, LlamaForCausalLM(config))


def qwen3(folder: Path) -> None:
    """A tied head, no biases; stored in bfloat16."""
    config = Qwen3Config(**COMMON, tie_word_embeddings=True)
    write(folder, Qwen3ForCausalLM(config), torch.bfloat16)


def qwen3_wide(folder: Path) -> None:
    """Rows of whole blocks of 256, a tied head; stored in float32."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    write(folder, Qwen3ForCausalLM(Qwen3Config(**COMMON | sizes, tie_word_embeddings=True)))


def qwen3_bias(folder: Path) -> None:
    """Biases, a head of its own, YaRN, one sliding layer."""
    rope = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 512}
    config = Qwen3Config(
        **COMMON,
        attention_bias=True,
        rope_parameters=rope,
        use_sliding_window=True,
        sliding_window=128,
        max_window_layers=2,
    )
    write(folder, Qwen3ForCausalLM(config))


def qwen3_moe(folder: Path) -> None:
    """Six experts, three a token, in two layers of three; stored in bfloat16."""
    config = Qwen3MoeConfig(
        **COMMON,
        **EXPERTS,
        norm_topk_prob=True,
        mlp_only_layers=[1],
    )
    write(folder, Qwen3MoeForCausalLM(config), torch.bfloat16)


def qwen3_fp8(folder: Path) -> None:
    """`qwen3` in float8: blocks of 128 x 128, the last ones incomplete, one projection left unconverted."""
    write_fp8(qwen3, folder, unconverted=("model.layers.1.self_attn.o_proj",))


def qwen3_moe_fp8(folder: Path) -> None:
    """Experts and projections in float8, in whole blocks, as GPUs multiply them."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 128, "num_key_value_heads": 2}

    def original(folder: Path) -> None:
        config = Qwen3MoeConfig(**COMMON | sizes, moe_intermediate_size=128, num_experts=4, num_experts_per_tok=2)
        write(folder, Qwen3MoeForCausalLM(config), torch.bfloat16)

    write_fp8(original, folder)


def qwen3_dense_fp8(folder: Path) -> None:
    """All projections in float8, in whole blocks, as GPUs multiply them."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 128, "num_key_value_heads": 2}

    def original(folder: Path) -> None:
        write(folder, Qwen3ForCausalLM(Qwen3Config(**COMMON | sizes)), torch.bfloat16)

    write_fp8(original, folder)


def qwen3_fp8_twin(folder: Path) -> None:
    """The model of `qwen3_fp8`, dequantized to bfloat16."""
    qwen3_fp8(folder)
    dequantize(folder)


GEMMA4_COMMON = COMMON | {
    "num_hidden_layers": 6,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
    },
    "global_head_dim": 64,
    "final_logit_softcapping": 30.0,
}


def gemma4(folder: Path) -> None:
    """A model like E2B: two sizes of heads, per-layer embeddings, three layers with KV sharing; in bfloat16."""
    config = Gemma4TextConfig(
        **GEMMA4_COMMON | {"num_key_value_heads": 1},
        hidden_size_per_layer_input=24,
        vocab_size_per_layer_input=1000,
        num_kv_shared_layers=3,
        use_double_wide_mlp=True,
    )
    write(folder, Gemma4ForCausalLM(config), torch.bfloat16)


def gemma4_dense(folder: Path) -> None:
    """A model like 31B: values that are keys in full layers, which have fewer heads; no per-layer embeddings."""
    config = Gemma4TextConfig(
        **GEMMA4_COMMON,
        hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        use_bidirectional_attention="vision",
    )
    write(folder, Gemma4ForCausalLM(config))


TINY_MODELS: dict[str, Callable[[Path], None]] = {
    function.__name__: function
    for function in (gemma3, gemma4, gemma4_dense, llama3, qwen3, qwen3_bias, qwen3_moe, qwen3_fp8)
}


def write_for_eight_devices(writer: Callable[[Path], None], folder: Path) -> None:
    """Writes a model with counts that eight GPUs can share, each with whole tiles of a product."""
    sizes = {"num_attention_heads": 8, "intermediate_size": 512}
    with patch.dict(COMMON, sizes), patch.dict(GEMMA4_COMMON, sizes), patch.dict(EXPERTS, moe_intermediate_size=128):
        writer(folder)


def write(folder: Path, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> None:
    """Saves the model with random weights; a fresh one has constant norms and biases, in which bugs would hide."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "norm" in name or "bias" in name else 0.06, generator=generator)
        if "norm" in name and "Gemma3" not in type(model).__name__:
            parameter.data += 1
        if "Gemma4" in type(model).__name__ and ("q_norm" in name or "k_norm" in name):
            parameter.data *= 0.35  # nothing else scales the scores: at 1, rounding errors would grow to 1e-4
        if name.endswith("mlp.gate.weight"):
            parameter.data *= 3  # a router that can hardly decide would be decided by rounding errors
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            torch.nn.init.uniform_(buffer, 0.5, 1.5, generator=generator)
    model.to(dtype).save_pretrained(folder)
    write_word_tokenizer(folder, model.config.get_text_config().vocab_size)


def write_word_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer in which token n is the word "wn"."""
    vocabulary = {f"w{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w3").save_pretrained(folder)


BLOCK = 128


def write_fp8(original: Callable[[Path], None], folder: Path, unconverted: tuple[str, ...] = ()) -> None:
    """A model as Qwen publishes it in float8: every projection of every layer, with bfloat16 scales."""
    original(folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight") and name.removesuffix(".weight") not in unconverted:
            tensors[name], tensors[f"{name}_scale_inv"] = quantized(tensor)
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    quantization = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["lm_head", *unconverted],
    }
    update_config(folder, quantization_config=quantization)


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float8 values, and a scale for each block."""
    scale_rows = []
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for top in range(0, weight.shape[0], BLOCK):
        row = []
        for left in range(0, weight.shape[1], BLOCK):
            block = weight[top : top + BLOCK, left : left + BLOCK].float()
            scale = (block.abs().max() / 448).to(torch.bfloat16)
            values[top : top + BLOCK, left : left + BLOCK] = (block / scale.float()).to(torch.float8_e4m3fn)
            row.append(scale)
        scale_rows.append(torch.stack(row))
    return values, torch.stack(scale_rows)


def dequantize(folder: Path) -> None:
    """Makes a float8 checkpoint one in bfloat16."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        scales, weight_name = tensors.pop(name).float(), name.removesuffix("_scale_inv")
        weight = tensors[weight_name].float()
        spread = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: weight.shape[0], : weight.shape[1]]
        tensors[weight_name] = (weight * spread).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))


def update_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
