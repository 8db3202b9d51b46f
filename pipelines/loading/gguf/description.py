"""The metadata of a model in GGUF files, read by the keys of its architecture."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from pipelines.errors import InputError
from pipelines.loading.gguf.file import GgufModel
from pipelines.loading.weights import same_values

SLIDING, FULL = "sliding_attention", "full_attention"
LAYER = re.compile(r"blk\.(\d{1,9})\.")

Config = dict[str, Any]
"""Fields of a transformers configuration."""


class Description:
    """Reads the metadata of one architecture: `count("block_count")` reads `gemma3.block_count`.

    Every method raises InputError if a key is missing or its value is wrong; the message names it.
    """

    def __init__(self, model: GgufModel) -> None:
        self.model, self.metadata, self.prefix = model, model.metadata, model.architecture
        self.num_layers = self._num_layers()
        self.hidden_size = self.count("embedding_length")
        self.num_heads = self.same_count("attention.head_count")
        if not self.num_heads:
            raise self.metadata.wrong(self.key("attention.head_count"), "1 or more")
        self.head_dim = self.size("attention.key_length", self.hidden_size // self.num_heads)
        if self.count("attention.value_length", self.head_dim) != self.head_dim:
            raise self.metadata.wrong(self.key("attention.value_length"), f"{self.head_dim}, as the key_length")

    def key(self, name: str) -> str:
        """Returns the whole key: with the architecture in front."""
        return f"{self.prefix}.{name}"

    def count(self, name: str, default: int | None = None) -> int:
        """Reads a number that is not negative."""
        return self.metadata.count(self.key(name), default)

    def size(self, name: str, default: int | None = None) -> int:
        """Reads a number that is 1 or more."""
        value = self.count(name, default)
        if not value:
            raise self.metadata.wrong(self.key(name), "1 or more")
        return value

    def counts(self, name: str, default: int | None = None) -> Sequence[int]:
        """Reads a number for each layer."""
        return self.metadata.counts(self.key(name), self.num_layers, default)

    def same_count(self, name: str, default: int | None = None) -> int:
        """Reads a number that is the same in all layers."""
        counts = set(self.counts(name, default))
        if len(counts) > 1:
            raise self.metadata.wrong(self.key(name), "the same in all layers")
        return counts.pop()

    def number(self, name: str, default: float | None = None) -> float:
        """Reads a number."""
        return self.metadata.number(self.key(name), default)

    def has_tensor(self, name: str) -> bool:
        """Whether the files have a tensor of this name."""
        return name in self.model.tensors

    def layers_with(self, name: str) -> list[int]:
        """Numbers of the layers that have a tensor."""
        return [layer for layer in range(self.num_layers) if self.has_tensor(f"blk.{layer}.{name}")]

    def common(self, intermediate_size: int | None = None, num_key_value_heads: int | None = None) -> Config:
        """Fields that all architectures have. Args: fields that some architectures have for each layer."""
        if intermediate_size is None:
            intermediate_size = self.same_count("feed_forward_length")
        if num_key_value_heads is None:
            num_key_value_heads = self.same_count("attention.head_count_kv", self.num_heads)
        return {
            "vocab_size": num_embeddings(self.model),
            "hidden_size": self.hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.count("context_length"),
            "rms_norm_eps": self.number("attention.layer_norm_rms_epsilon"),
            "attention_bias": self.has_tensor("blk.0.attn_q.bias"),
            "tie_word_embeddings": self._has_tied_head(),
        }

    def rope_theta(self, suffix: str = "") -> float:
        """Base period of RoPE; 10,000 if there is none, as in llama.cpp."""
        theta = self.number(f"rope.freq_base{suffix}", 10_000.0)
        if not 0 < theta < math.inf:
            raise self.metadata.wrong(self.key(f"rope.freq_base{suffix}"), "more than 0")
        return theta

    def partial(self, rope: Config, head_dim: int, suffix: str = "") -> Config:
        """Adds the part of a head that RoPE rotates, if it is not all of it."""
        num_rotated = self.count(f"rope.dimension_count{suffix}", head_dim)
        return rope if num_rotated == head_dim else rope | {"partial_rotary_factor": num_rotated / head_dim}

    def layer_types(self, default_pattern: int | None) -> list[str]:
        """Types of the layers: given for each, or by the number of layers of which the last is full."""
        key = self.key("attention.sliding_window_pattern")
        value = self.metadata.values.get(key, default_pattern)
        if type(value) is int and value > 0:
            return [SLIDING if (layer + 1) % value else FULL for layer in range(self.num_layers)]
        is_sliding = self.metadata.numbers(key)
        if len(is_sliding) != self.num_layers:
            raise self.metadata.wrong(key, f"a number, or true or false for each of {self.num_layers} layers")
        return [SLIDING if sliding else FULL for sliding in is_sliding]

    def _has_tied_head(self) -> bool:
        """Whether the embedding is the head: the file has no head, or the same values twice."""
        if not self.has_tensor("output.weight"):
            return True
        return same_values(self.model.tensor("output.weight"), self.model.tensor("token_embd.weight"))

    def _num_layers(self) -> int:
        """Number of layers, of which each has tensors: whatever is made for each layer depends on it."""
        found = {int(match[1]) for name in self.model.tensors if (match := LAYER.match(name))}
        num_layers = self.count("block_count")
        if not found or len(found) != num_layers or max(found) != num_layers - 1:
            raise self.metadata.wrong(self.key("block_count"), f"{len(found)}, the number of layers that have tensors")
        return num_layers


def num_embeddings(model: GgufModel) -> int:
    """Returns the number of tokens that the model has embeddings of.

    Raises:
        InputError: There are no embeddings.
    """
    embedding = model.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(f"{model.name} has no embeddings (tensor 'token_embd.weight'): choose the model's main file")
    return embedding.shape[0]
