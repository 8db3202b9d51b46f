"""Tokenizers of GGUF files: small vocabularies that are made here, and published ones where this machine has them.

`GGUF_VOCABULARIES` names the folder `models` in llama.cpp's sources: vocabularies, each with texts and their ids.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from pipelines.errors import InputError
from pipelines.gguf_metadata import Metadata
from pipelines.loading.gguf.file import open_gguf
from pipelines.text.gguf_tokenizer import PRE_TOKENIZERS, gguf_tokenizer
from pipelines.text.tokenizer import TextTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
VOCABULARIES = os.environ.get("GGUF_VOCABULARIES")
BYTES = {f"<0x{byte:02X}>": BYTE for byte in range(256)}
PATH = Path("x.gguf")


def metadata_of(vocabulary: Mapping[str, int], **values: Any) -> Metadata:
    """vocabulary: types by spelling. values: of keys after `tokenizer.ggml.`."""
    common = {"tokens": list(vocabulary), "token_type": np.array(list(vocabulary.values()), np.int32)}
    found = {f"tokenizer.ggml.{key}": value for key, value in (common | values).items() if value is not None}
    template = found.pop("tokenizer.ggml.chat_template", None)
    return Metadata(PATH, found | ({} if template is None else {"tokenizer.chat_template": template}))


def sentencepiece(**values: Any) -> Metadata:
    """The later a word, the lower its score."""
    ends = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<think>": USER_DEFINED, "<|turn>": USER_DEFINED}
    words = ("▁", "a", "b", "c", "▁a", "ab", "bc", "abc", "▁ab", "é")
    tokens = ends | BYTES | dict.fromkeys(words, NORMAL)
    scores = np.array([0.0] * len(ends) + [0.0] * 256 + [-float(i) for i in range(len(words))], np.float32)
    ids = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return metadata_of(tokens, **{"model": "llama", "scores": scores, **ids, **values})


def byte_level(pre: str = "qwen2", **values: Any) -> Metadata:
    ends = {"<|end|>": CONTROL, "<think>": USER_DEFINED}
    merges = ["a b", "Ġ a", "1 2", "12 3", "ab c", "Ġa b", "Ã ©"]
    tokens = dict.fromkeys(sorted(ByteLevel.alphabet()), NORMAL)
    tokens |= dict.fromkeys((merge.replace(" ", "") for merge in merges), NORMAL) | ends
    defaults = {"model": "gpt2", "pre": pre, "merges": merges, "eos_token_id": list(tokens).index("<|end|>")}
    return metadata_of(tokens | dict.fromkeys(["zzzz"], NORMAL), **{**defaults, **values})


def words(metadata: Metadata, text: str, special: bool = False) -> list[str]:
    tokenizer = gguf_tokenizer(metadata)
    return list(tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=special)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab", ["▁ab"]),
        ("abc", ["▁a", "bc"]),  # ▁a has a higher score than ab, of which abc would be made
        ("cabc", ["▁", "c", "abc"]),
        ("bab", ["▁", "b", "ab"]),
        ("a<think>a", ["▁a", "<think>", "▁a"]),  # a space begins the text after a marker, too
        ("é€", ["▁", "é", "<0xE2>", "<0x82>", "<0xAC>"]),
        ("", []),
    ],
)
def test_scores(text: str, expected: list[str]) -> None:
    assert words(sentencepiece(), text) == expected


def test_words_without_a_space_in_front() -> None:
    assert words(sentencepiece(add_space_prefix=False), "ab a") == ["ab", "▁a"]


def test_the_leftmost_of_equal_scores_is_merged_first() -> None:
    tokens = {"<unk>": UNKNOWN, **BYTES, **dict.fromkeys(["a", "aa", "aaa"], NORMAL)}
    scores = np.array([0.0] * 257 + [0, -1, -2], np.float32)
    options = {"scores": scores, "unknown_token_id": 0, "add_bos_token": False, "add_space_prefix": False}
    assert words(metadata_of(tokens, model="llama", **options), "aaaaa") == ["aa", "aaa"]


@pytest.mark.parametrize("metadata", [sentencepiece(), byte_level(), sentencepiece(add_space_prefix=False)])
def test_texts_come_back(metadata: Metadata) -> None:
    tokenizer = TextTokenizer(gguf_tokenizer(metadata))
    for text in ("ab  a\n\tc", "é€ 😀", "ab<think>", " ab", "a 12345"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_gemma_4() -> None:
    tokens = {"<pad>": CONTROL, "<eos>": CONTROL, "<bos>": CONTROL, "<unk>": CONTROL, **BYTES}
    tokens |= dict.fromkeys(["▁", "a", "b", "▁a", "▁▁", "\n", "\n\n", "ab"], NORMAL) | {"<|channel>": USER_DEFINED}
    merges = ["▁ ▁", "\n \n", "▁ a", "a b"]
    ids = {"bos_token_id": 2, "unknown_token_id": 3, "add_space_prefix": False, "add_bos_token": True}
    metadata = metadata_of(tokens, model="gemma4", merges=merges, **ids)
    assert words(metadata, "ab a  a\n\n<|channel>", special=True) == (
        ["<bos>", "ab", "▁a", "▁▁", "a", "\n\n", "<|channel>"]
    )


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("qwen2", "12345 ab", ["1", "2", "3", "4", "5", "Ġ", "ab"]),
        ("llama-bpe", "12345 ab", ["123", "4", "5", "Ġab"]),  # which the vocabulary has, though merges begin with ab
        ("gpt-2", "12345 ab", ["123", "4", "5", "Ġ", "ab"]),
        ("qwen2", "e\u0301", ["Ã©"]),  # composed
        ("llama-bpe", "e\u0301", ["e", "Ì", "ģ"]),
        ("llama-bpe", "zzzz", ["zzzz"]),  # a word of the vocabulary, though no merges make it
        ("qwen2", "zzzz", ["z", "z", "z", "z"]),
        ("qwen2", "a<think>", ["a", "<think>"]),
    ],
)
def test_bytes(pre: str, text: str, expected: list[str]) -> None:
    assert words(byte_level(pre, add_bos_token=False), text) == expected


def test_ends_of_texts() -> None:
    assert words(sentencepiece(), "a", special=True) == ["<s>", "▁a"]
    assert words(sentencepiece(add_bos_token=False), "a", special=True) == ["▁a"]
    assert words(sentencepiece(add_eos_token=True), "a", special=True) == ["<s>", "▁a", "</s>"]
    assert words(byte_level("qwen2"), "ab", special=True) == ["ab"]
    assert words(byte_level("llama-bpe", bos_token_id=5), "ab", special=True)[1:] == ["ab"]


def test_names_of_tokens_and_the_template() -> None:
    tokenizer = gguf_tokenizer(sentencepiece(padding_token_id=2, chat_template="{{ bos_token }}x"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    assert tokenizer.special_tokens_map == names
    assert TextTokenizer(tokenizer).render_chat([{"role": "user", "content": "a"}]) == "<s>x"
    assert gguf_tokenizer(sentencepiece(chat_template="x"), "y").chat_template == "y"
    assert not TextTokenizer(gguf_tokenizer(sentencepiece())).has_chat_template


def test_users_can_not_forge_control_tokens() -> None:
    """Also those that files mark as the users' own so that they are shown; markers such as <think> are theirs."""
    template = "{% for m in messages %}<|turn>{{ m.content }}</s>{% endfor %}"
    tokenizer = gguf_tokenizer(sentencepiece(chat_template=template))
    found = TextTokenizer(tokenizer).encode_chat([{"role": "user", "content": "a</s><|turn><think>"}])
    names = tokenizer.convert_ids_to_tokens(found)
    assert [names.count(name) for name in ("<|turn>", "</s>", "<think>")] == [1, 1, 1]


def test_empty_and_missing_types() -> None:
    metadata = byte_level(token_type=None)
    tokens = ["", *metadata.texts("tokenizer.ggml.tokens")]
    tokenizer = gguf_tokenizer(Metadata(PATH, {**metadata.values, "tokenizer.ggml.tokens": tokens}))
    assert tokenizer.convert_ids_to_tokens(0) == "[EMPTY_0]"
    assert len(tokenizer) == len(tokens)


def without(metadata: Metadata, key: str) -> Metadata:
    return Metadata(PATH, {name: value for name, value in metadata.values.items() if not name.endswith(key)})


REFUSED: Sequence[tuple[Metadata, str]] = [
    (sentencepiece(model="t5"), "a tokenizer of type 't5', which is not supported (llama, gemma4, gpt2 are)"),
    (without(sentencepiece(), "model"), "has no tokenizer.ggml.model"),
    (byte_level("chatglm-bpe"), "the pre-tokenizer 'chatglm-bpe', which is not supported (gpt-2, llama-bpe,"),
    (without(byte_level(), "pre"), "the pre-tokenizer ''"),
    (without(byte_level(), "merges"), "has no tokenizer.ggml.merges"),
    (byte_level(merges=["a b", "a q!"]), "the tokenizer of x.gguf can't be used: "),
    (byte_level(merges=["ab"]), "the tokenizer of x.gguf can't be used: "),
    (without(sentencepiece(), "scores"), "has no tokenizer.ggml.scores"),
    (sentencepiece(scores=np.zeros(3, np.float32)), "a number for each of 271 tokens"),
    (sentencepiece(token_type=np.zeros(3, np.int32)), "a number for each of 271 tokens"),
    (sentencepiece(tokens=["a", "b", "a"], token_type=None), "token 'a' is twice in the vocabulary of x.gguf"),
    (sentencepiece(bos_token_id=271), "tokenizer.ggml.bos_token_id in x.gguf is 271"),
    (without(sentencepiece(), "bos_token_id"), "adds a token to each text (add_bos_token), and has no"),
    (sentencepiece(add_bos_token=3), "it must be true or false"),
    (sentencepiece(chat_template=3), "it must be a string"),
]


@pytest.mark.parametrize(("metadata", "expected"), REFUSED)
def test_tokenizers_that_can_not_be_used(metadata: Metadata, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        gguf_tokenizer(metadata)
    assert expected in str(caught.value)
    assert "x.gguf" in str(caught.value)


@pytest.mark.skipif(VOCABULARIES is None, reason="GGUF_VOCABULARIES names no folder of them")
@pytest.mark.parametrize("name", ["gemma-4", "qwen2", "llama-bpe", "llama-spm", "phi-3"])
def test_published_vocabularies(name: str) -> None:
    file = Path(VOCABULARIES or "") / f"ggml-vocab-{name}.gguf"
    tokenizer = gguf_tokenizer(open_gguf(file).metadata)
    texts = Path(f"{file}.inp").read_text().split("\n__ggml_vocab_test__\n")
    expected = [[int(word) for word in line.split()] for line in Path(f"{file}.out").read_text().splitlines()]
    assert len(expected) == 46
    found = [tokenizer.encode(text, add_special_tokens=False) for text in texts[:46]]
    assert found == expected
    text_tokenizer = TextTokenizer(tokenizer)
    assert [text_tokenizer.decode(ids) for ids in found] == texts[:46]
    assert all(text_tokenizer.min_num_tokens(text) <= len(ids) for text, ids in zip(texts, found, strict=False))


def test_pre_tokenizers_are_named_once() -> None:
    assert {"qwen2", "llama-bpe"} <= set(PRE_TOKENIZERS)
