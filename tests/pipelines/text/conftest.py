"""Tokenizers of the families: small ones made here, and the published ones where this machine has them.

`PUBLISHED_TOKENIZERS` names a folder with `gemma-4` and `qwen2` (the vocabulary of Qwen 3), as the vocabulary files in
the source package of llama-cpp-python give them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from published import FOLDERS
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines.text.tokenizer import TextTokenizer

GEMMA3_NAMES = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
GEMMA4_NAMES = {
    "mask_token": "<mask>",
    "std_token": "<|tool>",
    "etd_token": "<tool|>",
    "stc_token": "<|tool_call>",
    "etc_token": "<tool_call|>",
    "str_token": "<|tool_response>",
    "etr_token": "<tool_response|>",
    "escape_token": '<|"|>',
    "think_token": "<|think|>",
    "soc_token": "<|channel>",
    "eoc_token": "<channel|>",
    "sot_token": "<|turn>",
    "eot_token": "<turn|>",
    "boi_token": "<|image>",
    "image_token": "<|image|>",
    "eoi_token": "<image|>",
}
PUBLISHED_FOLDER = os.environ.get("PUBLISHED_TOKENIZERS")


@dataclass(frozen=True)
class Family:
    """A tokenizer in transformers and in pipelines. special: its control tokens. ordinary: other added tokens."""

    hf: Any
    eos: tuple[str, ...]
    ordinary: tuple[str, ...] = ()
    text: TextTokenizer = field(init=False)

    def __post_init__(self) -> None:
        eos_token_ids = self.hf.convert_tokens_to_ids(list(self.eos))
        object.__setattr__(self, "text", TextTokenizer(self.hf, eos_token_ids))

    @property
    def controls(self) -> list[str]:
        """Every spelling that users must not get through."""
        added = self.hf.added_tokens_decoder.values()
        special = [token.content for token in added if token.special and token.content != self.hf.unk_token]
        return list(dict.fromkeys([*special, *self.eos]))

    def ids(self, *tokens: str) -> list[int]:
        return [self.hf.convert_tokens_to_ids(token) for token in tokens]

    def num_controls(self, token_ids: list[int]) -> int:
        controls = set(self.ids(*self.controls))
        return sum(token_id in controls for token_id in token_ids)

    def reference(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        """Token ids of transformers, for which control tokens count wherever they are spelled."""
        options = {"add_generation_prompt": True, **options}
        return list(self.hf.apply_chat_template(messages, tokenize=True, **options)["input_ids"])


def template(folder: str) -> str:
    return str((FOLDERS[folder] / "chat_template.jinja").read_text())


def sentencepiece(controls: list[str]) -> Tokenizer:
    """A tokenizer like Gemma's: pairs of characters, a mark for the space, bytes for the rest."""
    pieces = [*controls, *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127)), "▁", "\n", "é", "中"]
    merges = [("▁", "<"), ("<", "|"), ("t", "u"), ("\n", "\n"), ("|", ">"), ("▁", "t"), ("▁t", "h"), ("▁", "▁")]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in controls])
    return tokenizer


def gemma3() -> Family:
    turns = ["<start_of_turn>", "<end_of_turn>"]
    controls = ["<pad>", "<eos>", "<bos>", "<unk>", *turns, *GEMMA3_NAMES.values()]
    return Family(gemma(controls, GEMMA3_NAMES, turns, "google__gemma-3-4b-it"), eos=("<eos>", "<end_of_turn>"))


def gemma4() -> Family:
    controls = ["<pad>", "<eos>", "<bos>", "<unk>", *GEMMA4_NAMES.values()]
    hf = gemma(controls, GEMMA4_NAMES, [], "google__gemma-4-E2B-it")
    return Family(hf, eos=("<eos>", "<turn|>", "<|tool_response>"))


def gemma(controls: list[str], names: dict[str, str], others: list[str], folder: str) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=sentencepiece(controls),
        **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")},
        extra_special_tokens={**names, **{f"turn{i}_token": token for i, token in enumerate(others)}},
        chat_template=template(folder),
    )


def qwen3() -> Family:
    """Bytes, composed characters, and markers of thinking and tools that are added tokens but not special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "|"), ("Ġ", "<|"), ("t", "h"), ("Ċ", "Ċ"), ("|", ">")]
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "<|", "Ġ<|", "th", "ĊĊ", "|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    ordinary = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ordinary])
    hf = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template("Qwen__Qwen3-0.6B"),
    )
    return Family(hf, eos=("<|im_end|>", "<|endoftext|>"), ordinary=ordinary)


def published(name: str, folder: str, **options: Any) -> Any:
    assert PUBLISHED_FOLDER is not None
    return AutoTokenizer.from_pretrained(Path(PUBLISHED_FOLDER) / name, chat_template=template(folder), **options)


def published_gemma4() -> Family:
    """A family as on the hub: the markers inside an answer are special tokens that have names."""
    hf = published("gemma-4", "google__gemma-4-E2B-it", extra_special_tokens=GEMMA4_NAMES)
    return Family(hf, eos=("<eos>", "<turn|>", "<|tool_response>"))


def published_gemma4_gguf() -> Family:
    """A family as in GGUF files: the markers inside an answer are added tokens that are not special."""
    hf = published("gemma-4", "google__gemma-4-31B-it")
    return Family(hf, eos=("<eos>", "<turn|>", "<|tool_response>"), ordinary=("<|channel>", "<channel|>"))


def published_qwen3() -> Family:
    return Family(published("qwen2", "Qwen__Qwen3-0.6B"), eos=("<|im_end|>", "<|endoftext|>"))


MADE = {"gemma3": gemma3, "gemma4": gemma4, "qwen3": qwen3}
PUBLISHED = {
    "published gemma4": published_gemma4,
    "published gemma4 gguf": published_gemma4_gguf,
    "published qwen3": published_qwen3,
}
FAMILIES = MADE if PUBLISHED_FOLDER is None else {**MADE, **PUBLISHED}


@functools.cache
def family_of(name: str) -> Family:
    return {**MADE, **PUBLISHED}[name]()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    """Each family's tokenizer; the published ones only where they are."""
    return family_of(request.param)


@pytest.fixture
def family_named() -> Callable[[str], Family]:
    """A family's tokenizer by its name."""
    return family_of
