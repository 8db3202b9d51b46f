"""The lower bound of a text's number of tokens, computed without tokenizing it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipelines.text.length_bound import LengthBound
from pipelines.text.tokenizer import TextTokenizer

Family = Any  # conftest.py's

# Three characters of 7 bytes that are composed to one of 2, of 9 to 3, of 3 to 1; spaces; words; what is in no word.
PIECES = ["\u1fbe\u0308\u0301", "\u1112\u1161\u11ab", "\u212a", " " * 31, "\n" * 5, "word ", "中文", "😀", "<bos>"]


def test_no_text_has_fewer_tokens(family: Family) -> None:
    rng = random.Random(2)
    for _ in range(300):
        controls = rng.choice([family.controls, [" "]])
        text = "".join(rng.choice([*PIECES, rng.choice(controls)]) * rng.choice([1, 1, 9]) for _ in range(9))
        assert 0 < family.text.min_num_tokens(text) <= len(family.text.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("text", [*PIECES, "e\u0301\u0323", "\U000105d2\u0307", "a\ud800"])
def test_no_text_of_one_kind_has_fewer_tokens(family: Family, text: str) -> None:
    bound = family.text.min_num_tokens(text * 1000)
    assert bound > 0 or max(map(ord, text)) > 0xFFFF
    if text.isprintable():
        assert bound <= len(family.text.encode(text * 1000, add_special_tokens=False))


def test_the_bound_is_that_of_the_longest_token(family: Family) -> None:
    vocabulary = family.hf.get_vocab()
    longest = max(max(map(len, vocabulary)), *(len(token.encode()) for token in family.hf.added_tokens_encoder))
    assert family.text.min_num_tokens("x" * 1000 * longest) == 1000


def byte_pairs(**options: Any) -> Tokenizer:
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], **options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def with_steps(normalizer: Any = None, split: Any = None, added: AddedToken | None = None) -> Tokenizer:
    tokenizer = byte_pairs()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if split is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, tokenizer.pre_tokenizer])
    if added is not None:
        tokenizer.add_special_tokens([added])
    return tokenizer


def without_byte_level() -> Tokenizer:
    tokenizer = byte_pairs()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    return tokenizer


UNBOUNDED = {
    "words, of any length": word_level(),
    "characters, of which unknown ones vanish": without_byte_level(),
    "one piece of all unknown characters": Tokenizer(models.Unigram([("a", -1.0), ("?", -2.0)], unk_id=1)),
    "a step that drops spaces": with_steps(split=pre_tokenizers.WhitespaceSplit()),
    "a step that drops what it splits at": with_steps(split=pre_tokenizers.Split(" ", "removed")),
    "a normalizer that drops spaces": with_steps(normalizers.Strip()),
    "a normalizer that shortens": with_steps(normalizers.Replace("  ", " ")),
    "a normalizer with a pattern": with_steps(normalizers.Replace(Regex("a+"), "a")),
    "one among several": with_steps(normalizers.Sequence([normalizers.NFC(), normalizers.StripAccents()])),
    "a token with the spaces around it": with_steps(added=AddedToken("<s>", lstrip=True)),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_tokens_that_may_stand_for_any_length(name: str) -> None:
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=UNBOUNDED[name]))
    assert tokenizer.min_num_tokens("a " * 1000) == 0


def test_a_step_written_in_python() -> None:
    backend = with_steps()
    assert LengthBound.of(backend) is not None
    backend.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(object())
    assert LengthBound.of(backend) is None


@pytest.mark.parametrize("split", [None, pre_tokenizers.Digits(), pre_tokenizers.Split(" ", "isolated")])
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC(), normalizers.Prepend("x")])
def test_steps_that_keep_all_text(split: Any, normalizer: Any) -> None:
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=with_steps(normalizer, split)))
    assert tokenizer.min_num_tokens("a" * 1000) == 1000
