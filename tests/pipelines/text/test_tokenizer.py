"""Tokenizing, chat templates, and text that comes token by token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pipelines.errors import InputError
from pipelines.text.detokenizer import IncrementalDetokenizer, StopChecker
from pipelines.text.tokenizer import TextTokenizer

TEXTS = [
    "def main() -> None:\n    print('hello  world')\n",
    "  two spaces first, and last  ",
    "日本語と中文混排,测试一下。",
    "emoji 😀😀😀😀😀😀 and 👩‍👩‍👧‍👦 and 🇩🇪🇫🇷",
    "combining: e\u0301 a\u0308 \u0928\u093f | Ωμέγα Привет שלום",
    "a real \ufffd in the text",
    "\U0001f600",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<model>{% if mood is defined %}{{ mood }}{% endif %}{% endif %}"
)


def byte_level() -> Tokenizer:
    """Byte-level BPE. Trained on repeated emoji, so that some of its tokens end inside a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<bos>", "<eos>"])
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def byte_fallback(drops_first_space: bool) -> Tokenizer:
    """A tokenizer like sentencepiece's: words with a mark for the space, single bytes for the rest."""
    pieces = ["<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "▁two", "▁spaces", "▁and"]
    pieces += sorted({c for text in TEXTS for c in text if c.isascii() and c > " "} | {"本", "中", "\ufffd"})
    model = models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    prefix = [normalizers.Prepend("▁")] if drops_first_space else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if drops_first_space else [])])
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    return tokenizer


KINDS = {
    "byte-level": byte_level(),
    "byte-fallback": byte_fallback(drops_first_space=False),
    "byte-fallback-prefix": byte_fallback(drops_first_space=True),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def detokenizer(tokenizer: Tokenizer) -> IncrementalDetokenizer:
    return IncrementalDetokenizer(tokenizer.decode, tokenizer.encode("a").ids)


def pieces_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    stream = detokenizer(tokenizer)
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


def random_text(rng: random.Random) -> str:
    alphabets = [
        "abc de ",
        "  ",
        "中文本",
        "😀👩\u200d👧",
        "e\u0301\u0308",
        "Ωш\u0928\u093f",
        "\U0001f1e9\U0001f1ea",
        "\ufffd",
    ]
    return "".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randint(1, 40)))


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_and_hold_no_half_characters(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    pieces = pieces_of(tokenizer, tokenizer.encode(text).ids)
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text).ids) == text


def test_random_texts(kind: str) -> None:
    tokenizer, rng = KINDS[kind], random.Random(3)
    for _ in range(500):
        text = random_text(rng)
        ids = tokenizer.encode(text).ids
        assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids) == text


def test_text_comes_as_soon_as_its_character_is_complete(kind: str) -> None:
    tokenizer, text = KINDS[kind], "x" + "😀" * 30 + " and 中"
    ids = tokenizer.encode(text).ids
    stream, shown = detokenizer(tokenizer), ""
    for end, token_id in enumerate(ids, 1):
        shown += stream.push(token_id)
        decoded = tokenizer.decode(ids[:end])
        assert text.startswith(shown)
        assert shown == decoded or decoded.endswith("\ufffd")
    assert shown == text


def test_tokens_that_never_end_with_a_character_are_shown_all_the_same() -> None:
    """A model that repeats an emoji may do so in tokens each of which ends inside one."""
    tokenizer = KINDS["byte-level"]
    by_byte = [tokenizer.encode(c).ids[0] for c in "abcd"]
    chunk = {by_byte[0]: b"\xf0\x9f", by_byte[1]: b"\x98\x80\xf0\x9f"}
    calls: list[int] = []

    def decode(ids: list[int]) -> str:
        calls.append(len(ids))
        return b"".join(chunk[token_id] for token_id in ids).decode(errors="replace")

    stream = IncrementalDetokenizer(decode)
    shown = stream.push(by_byte[0]) + "".join(stream.push(by_byte[1]) for _ in range(100))
    assert shown == "😀" * 100
    assert max(calls) <= 20
    assert stream.finish() == "\ufffd"


def test_invalid_bytes_are_not_held_for_long(kind: str) -> None:
    tokenizer, rng = KINDS[kind], random.Random(4)
    sizes: list[int] = []

    def decode(ids: list[int]) -> str:
        sizes.append(len(ids))
        return str(tokenizer.decode(ids))

    stream = IncrementalDetokenizer(decode, tokenizer.encode("a").ids)
    num_shown, tokens = 0, high_bytes(kind)
    for num_pushed in range(1, 300):
        num_shown += len(stream.push(rng.choice(tokens)))
        assert num_shown >= num_pushed / 4 - 4
    assert max(sizes) <= 20


def test_byte_level_garbage_is_shown_as_it_decodes() -> None:
    tokenizer, rng, tokens = KINDS["byte-level"], random.Random(5), high_bytes("byte-level")
    for _ in range(200):
        ids = [rng.choice(tokens) for _ in range(rng.randint(1, 40))]
        assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


def high_bytes(kind: str) -> list[int]:
    """Tokens of one byte from 0x80 to 0xFF."""
    vocabulary = KINDS[kind].get_vocab()
    if kind.startswith("byte-fallback"):
        return [vocabulary[f"<0x{byte:02X}>"] for byte in range(128, 256)]
    ids = [vocabulary[c] for c in sorted(pre_tokenizers.ByteLevel.alphabet())]
    return [token_id for token_id in ids if KINDS[kind].decode([token_id]) == "\ufffd"]


def test_an_incomplete_end_becomes_a_replacement_character(kind: str) -> None:
    tokenizer = KINDS[kind]
    ids = tokenizer.encode("a 😁").ids[:-1]
    pieces = pieces_of(tokenizer, ids)
    assert "\ufffd" not in "".join(pieces[:-1])
    assert "".join(pieces) == tokenizer.decode(ids)
    assert set(pieces[-1]) == {"\ufffd"}


def test_special_tokens_before_the_text_do_not_change_its_first_space(kind: str) -> None:
    tokenizer = KINDS[kind]
    ids = [tokenizer.get_vocab()["<bos>"], *tokenizer.encode("  two spaces").ids]
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


def pieces_with_stops(stops: Sequence[str], pieces: Sequence[str]) -> tuple[list[str], bool]:
    checker, shown, is_stopped = StopChecker(stops), [], False
    for piece in pieces:
        text, is_stopped = checker.feed(piece)
        shown.append(text)
        if is_stopped:
            break
    return [*shown, checker.finish()], is_stopped


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "is_stopped"),
    [
        (["END"], ["a", "E", "N", "D", "b"], ["a", "", "", "", ""], True),
        (["END"], ["xEN", "E", "ND"], ["x", "EN", "", ""], True),
        (["END"], ["aEN"], ["a", "EN"], False),
        (["END"], ["beforeENDafter"], ["before", ""], True),
        (["aab"], ["aa", "a", "b"], ["", "a", "", ""], True),
        (["abcd", "bc"], ["abcd"], ["a", ""], True),
        (["abcd", "bc"], ["a", "b", "c", "d"], ["", "", "a", ""], True),
        (["xbc", "bc"], ["xbc"], ["", ""], True),
        ([], ["a", "b"], ["a", "b", ""], False),
        (["\n\n"], ["line\n", "more\n", "\n"], ["line", "\nmore", "", ""], True),
    ],
)
def test_stop_strings(stops: list[str], pieces: list[str], shown: list[str], is_stopped: bool) -> None:
    assert pieces_with_stops(stops, pieces) == (shown, is_stopped)


def test_stopping_does_not_depend_on_the_pieces() -> None:
    rng = random.Random(6)
    for _ in range(2000):
        text = "".join(rng.choice("ab") for _ in range(15))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randint(2, 5))) for _ in range(3)]
        cuts = sorted(rng.sample(range(1, 15), 3))
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, 15], strict=True)]
        whole, cut, single = (pieces_with_stops(stops, p) for p in ([text], pieces, list(text)))
        assert "".join(whole[0]) == "".join(cut[0]) == "".join(single[0])
        assert not any(stop in "".join(whole[0]) for stop in stops)
        assert whole[1] == cut[1] == single[1] == any(stop in text for stop in stops)


def test_after_a_stop_nothing_comes() -> None:
    checker = StopChecker(["x"])
    assert checker.feed("axb") == ("a", True)
    assert checker.feed("more") == ("", True)
    assert checker.finish() == ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's tokenizer, that puts <bos> before a text, with a chat template that does so too."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("tokenizer")
    backend = byte_level()
    backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", model_max_length=16
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer.from_pretrained(folder)


def test_a_text_and_back(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("hello , world .")
    assert ids[0] == 0
    assert tokenizer.decode([*ids, 1]) == "hello , world ."
    assert tokenizer.vocab_size == 330


def test_end_of_text_tokens(folder: Path, tokenizer: TextTokenizer) -> None:
    assert tokenizer.eos_token_ids == (1,)
    assert TextTokenizer.from_pretrained(folder, eos_token_ids=(1, 106)).eos_token_ids == (1, 106)


def test_loading_and_long_texts_are_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = TextTokenizer.from_pretrained(folder)
    assert len(tokenizer.encode("xyz" * 100)) > 16  # the tokenizer's own limit
    assert capfd.readouterr() == ("", "")


def test_a_chat_begins_with_one_bos_and_ends_where_the_answer_begins(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}], mood="glad")
    assert ids.count(0) == 1
    assert tokenizer.decode(ids) == "<user>hi\n<model>glad"


@pytest.mark.parametrize(
    ("messages", "arguments", "message"),
    [
        ([{"role": "system", "content": "x"}], {}, "System role not supported"),
        ([], {}, "chat template"),
        ([{"role": "user", "content": "x"}], {"chat_template": "{{ 1 }}"}, "^chat_template is not"),
        ([{"role": "user", "content": "x"}], {"tokenize": True}, "^tokenize is not"),
    ],
)
def test_a_refused_chat(
    tokenizer: TextTokenizer, messages: list[dict[str, str]], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer.encode_chat(messages, **arguments)


def test_no_chat_template() -> None:
    from transformers import PreTrainedTokenizerFast

    plain = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=byte_level()))
    assert not plain.has_chat_template
    assert plain.eos_token_ids == ()
    with pytest.raises(InputError, match="no chat template"):
        plain.encode_chat([{"role": "user", "content": "x"}])


def test_half_a_surrogate_pair_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputError, match="character 2"):
        tokenizer.encode("ab\ud800")


def test_the_tokenizer_makes_its_own_detokenizer(tokenizer: TextTokenizer) -> None:
    stream = tokenizer.detokenizer()
    ids = tokenizer.encode("a 😀!")
    assert "".join(map(stream.push, ids)) + stream.finish() == "a 😀!"


@pytest.mark.parametrize(("files", "message"), [({}, "no tokenizer"), ({"tokenizer.json": "{"}, "can't be read")])
def test_a_folder_without_a_usable_tokenizer(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        TextTokenizer.from_pretrained(tmp_path)
