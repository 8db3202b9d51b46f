"""The truth that tests compare with: transformers, in float32, with eager attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

TOLERANCE = 1e-4
"""Of the largest logit."""


class Reference:
    """A checkpoint in transformers."""

    def __init__(self, path: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        self.vocab_size = self.model.config.get_text_config().vocab_size

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """[T, V]"""
        return self.model(torch.tensor([tokens])).logits[0].float().numpy()

    @torch.inference_mode()
    def greedy(self, tokens: list[int], num_new: int) -> list[int]:
        """The next `num_new` tokens, end-of-text tokens being like any other."""
        output = self.model.generate(
            torch.tensor([tokens]), max_new_tokens=num_new, min_new_tokens=num_new, do_sample=False
        )
        return output[0, len(tokens) :].tolist()


def relative_difference(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """max |difference| over max |logit|."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def random_tokens(length: int, vocab_size: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([seed, length]).integers(10, vocab_size, length).tolist()


def write_tiny_gemma3(folder: Path) -> Path:
    """A head of its own, biases, scaled RoPE, a scale that is not head_dim's, one KV head, soft-capped logits."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=1000,
        hidden_size=192,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=24,
        sliding_window=256,
        max_position_embeddings=2048,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
        },
        attention_bias=True,
        final_logit_softcapping=5.0,
        tie_word_embeddings=False,
        eos_token_id=1,
        architectures=["Gemma3ForCausalLM"],
    )
    model = Gemma3ForCausalLM(config)
    for name, parameter in model.named_parameters():  # a fresh model has constant norms and biases: bugs would hide
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        else:
            torch.nn.init.normal_(parameter, std=0.06)
    model.save_pretrained(folder)
    write_word_tokenizer(folder, config.vocab_size)
    return folder


def write_word_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer in which token n is the word "wn"."""
    vocabulary = {f"w{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w3").save_pretrained(folder)
