"""The tokenizer of a model in a GGUF file, as one of the tokenizers library.

Sources: the published tokenizer.json files, whose steps these are, and llama.cpp's llama-vocab.cpp for the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.errors import InputError
from pipelines.gguf_metadata import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Metadata, printable, token_id_of, token_types
from pipelines.quiet import quiet

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = "tokenizer.chat_template"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space in vocabularies of SentencePiece
LOOKS_LIKE_CONTROL = re.compile(r"<\|.+>|<.+\|>")
NAMED_TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}

Merges = list[tuple[str, str]]

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """The cut of text into words, before a byte-level vocabulary sees them. pattern: of a word; None: that of GPT-2."""

    pattern: str | None = None
    composes: bool = False  # characters are composed (NFC) before
    ignores_merges: bool = False  # a word that the vocabulary has is one token, whatever the merges are
    adds_bos: bool = False


LLAMA3 = PreTokenizer(_WORDS.format(digits="{1,3}"), ignores_merges=True, adds_bos=True)
QWEN2 = PreTokenizer(_WORDS.format(digits=""), composes=True)
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(),
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
}
"""Pre-tokenizers of byte-level vocabularies by `tokenizer.ggml.pre`."""


@dataclass(frozen=True)
class _Vocabulary:
    """The tokens of a file, each with its type, and their ids."""

    metadata: Metadata
    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]

    @classmethod
    def read(cls, metadata: Metadata) -> _Vocabulary:
        tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(metadata.texts("tokenizer.ggml.tokens"))]
        ids = {token: i for i, token in enumerate(tokens)}
        if len(ids) < len(tokens):
            twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
            raise InputError(f"token '{printable(twice)}' is twice in the vocabulary of {metadata.path}")
        return cls(metadata, tokens, token_types(metadata), ids)

    def name_of(self, role: str) -> str | None:
        """Returns the token with a role ("bos"), if the file names one."""
        token_id = token_id_of(self.metadata, role)
        return None if token_id is None else self.tokens[token_id]


@dataclass(frozen=True)
class _Given:
    """Gives transformers the tokenizer itself, of which it would make a copy: seconds for 262,144 tokens."""

    tokenizer: Tokenizer

    def __deepcopy__(self, memo: object) -> Tokenizer:
        return self.tokenizer


def gguf_tokenizer(metadata: Metadata, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Makes the tokenizer that the metadata of a file describes.

    Args:
        metadata: The metadata.
        chat_template: Replaces the chat template of the file.

    Raises:
        InputError: Its type or pre-tokenizer is not supported, or a key is missing or wrong; the message names it.
    """
    kind = metadata.text("tokenizer.ggml.model")
    if kind not in _BUILDERS:
        raise InputError(
            f"{metadata.path} has a tokenizer of type '{printable(kind)}', which is not supported "
            f"({', '.join(_BUILDERS)} are): put the model's tokenizer.json into its folder"
        )
    vocabulary = _Vocabulary.read(metadata)
    with quiet():
        from transformers import PreTrainedTokenizerFast

        try:
            tokenizer, adds_bos = _BUILDERS[kind](vocabulary)
            _add_tokens(tokenizer, vocabulary)
        except InputError:
            raise
        except Exception as error:  # the library's errors are plain exceptions
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"the tokenizer of {metadata.path} can't be used: {reason}") from error
        _add_ends(tokenizer, vocabulary, adds_bos)
        named = {name: token for role, name in NAMED_TOKENS.items() if (token := vocabulary.name_of(role))}
        fast = PreTrainedTokenizerFast(tokenizer_object=_Given(tokenizer), clean_up_tokenization_spaces=False, **named)
    if chat_template is not None or CHAT_TEMPLATE in metadata:
        fast.chat_template = chat_template or metadata.text(CHAT_TEMPLATE)
    return fast


def _byte_level(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """Byte pairs of bytes, which are written as printable characters: Qwen, Llama 3."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = vocabulary.metadata.text("tokenizer.ggml.pre", "")
    if name not in PRE_TOKENIZERS:
        raise InputError(
            f"{vocabulary.metadata.path} has the pre-tokenizer '{printable(name)}', which is not supported "
            f"({', '.join(PRE_TOKENIZERS)} are): put the model's tokenizer.json into its folder"
        )
    pre = PRE_TOKENIZERS[name]
    model = models.BPE(dict(vocabulary.ids), _stored_merges(vocabulary), ignore_merges=pre.ignores_merges)
    tokenizer = Tokenizer(model)
    if pre.composes:
        tokenizer.normalizer = normalizers.NFC()
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.pattern is None)
    tokenizer.pre_tokenizer = as_bytes
    if pre.pattern is not None:
        words = pre_tokenizers.Split(Regex(pre.pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre.adds_bos


def _gemma4(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """Byte pairs of characters, with the merges in the file: Gemma 4."""
    return _sentencepiece(vocabulary, _stored_merges(vocabulary), adds_space=False), True


def _llama(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """Byte pairs of characters, with a score for each token in place of merges: Gemma 3, Llama 2."""
    adds_space = vocabulary.metadata.flag("tokenizer.ggml.add_space_prefix", True)
    return _sentencepiece(vocabulary, _scored_merges(vocabulary), adds_space), True


def _sentencepiece(vocabulary: _Vocabulary, merges: Merges, adds_space: bool) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    unknown = vocabulary.name_of("unknown")
    model = models.BPE(dict(vocabulary.ids), merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    spaces, steps = normalizers.Replace(" ", SPACE), [decoders.Replace(SPACE, " "), decoders.ByteFallback()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if adds_space else spaces
    stripped = [decoders.Strip(" ", 1, 0)] if adds_space else []
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Fuse(), *stripped])
    return tokenizer


_BUILDERS: Mapping[str, Callable[[_Vocabulary], tuple[Tokenizer, bool]]] = {
    "llama": _llama,
    "gemma4": _gemma4,
    "gpt2": _byte_level,
}
"""Builders by `tokenizer.ggml.model`: vocabulary -> the tokenizer, and whether texts begin with a token by default."""


def _stored_merges(vocabulary: _Vocabulary) -> Merges:
    """The merges in the file: two tokens with a space between, which may begin with one."""
    merges = []
    for merge in vocabulary.metadata.texts("tokenizer.ggml.merges"):
        cut = merge.find(" ", 1)
        merges.append((merge[:cut], merge[cut + 1 :]))
    return merges


def _scored_merges(vocabulary: _Vocabulary) -> Merges:
    """The merges that make each token of two others, the token with the highest score first.

    Of two ways to make one token the one with the longer beginning comes first, as in transformers' converter.
    """
    key, metadata = "tokenizer.ggml.scores", vocabulary.metadata
    scores = metadata.numbers(key)
    if len(scores) != len(vocabulary.tokens):
        raise metadata.wrong(key, f"a number for each of {len(vocabulary.tokens)} tokens")
    merged = [i for i, kind in enumerate(vocabulary.types) if kind not in (CONTROL, UNKNOWN, BYTE)]
    best_first = sorted(merged, key=lambda i: -scores[i])
    return [pair for i in best_first for pair in _halves(vocabulary.tokens[i], vocabulary.ids)]


def _halves(token: str, ids: Mapping[str, int]) -> Merges:
    """Returns the pairs of tokens that make a token, that with the longest beginning first."""
    cuts = range(len(token) - 1, 0, -1)
    return [(token[:cut], token[cut:]) for cut in cuts if token[:cut] in ids and token[cut:] in ids]


def _add_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Adds the tokens that are recognized before the text is cut.

    Files mark the control tokens that an answer may show (Gemma 4's of thinking and tools) as the users' own: users
    must not be able to forge them either.
    """
    from tokenizers import AddedToken

    added: dict[bool, list[AddedToken]] = {True: [], False: []}
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            is_special = kind != USER_DEFINED or LOOKS_LIKE_CONTROL.fullmatch(token) is not None
            added[is_special].append(AddedToken(token, special=is_special, normalized=False))
    tokenizer.add_special_tokens(added[True])
    tokenizer.add_tokens(added[False])


def _add_ends(tokenizer: Tokenizer, vocabulary: _Vocabulary, adds_bos: bool) -> None:
    """Puts a token at the beginning of each text, or at its end, if the file says so."""
    from tokenizers.processors import TemplateProcessing

    metadata = vocabulary.metadata
    begin = "bos" if metadata.flag("tokenizer.ggml.add_bos_token", adds_bos) else None
    end = "eos" if metadata.flag("tokenizer.ggml.add_eos_token", False) else None
    roles = {role: vocabulary.name_of(role) for role in (begin, end) if role is not None}
    if missing := [role for role, token in roles.items() if token is None]:
        key = f"tokenizer.ggml.{missing[0]}_token_id"
        raise InputError(f"{metadata.path} adds a token to each text (add_{missing[0]}_token), and has no {key}")
    if roles:
        pieces = [*([f"{roles['bos']}"] if begin else []), "$A", *([f"{roles['eos']}"] if end else [])]
        special = [(token, vocabulary.ids[token]) for token in dict.fromkeys(roles.values()) if token is not None]
        tokenizer.post_processor = TemplateProcessing(single=pieces, special_tokens=special)
