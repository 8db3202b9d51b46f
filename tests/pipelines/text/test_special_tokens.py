"""Special tokens in an answer: those that frame it are left out of the text, the markers inside it stay."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipelines.text.tokenizer import TextTokenizer

Family = Any  # conftest.py's
FamilyNamed = Callable[[str], Family]

GEMMA4_ANSWER = '<|channel>thought\nHm.<channel|>It is 5.<|tool_call>call:f{x:<|"|>y<|"|>}<tool_call|>'
QWEN3_ANSWER = '<think>\nHm.\n</think>\n\nIt is 5.<tool_call>\n{"name": "f"}\n</tool_call>'
ANSWERS = {
    "gemma3": ("It is 5.", "<end_of_turn>"),
    "gemma4": (GEMMA4_ANSWER, "<turn|>"),
    "qwen3": (QWEN3_ANSWER, "<|im_end|>"),
    "published gemma4": (GEMMA4_ANSWER, "<turn|>"),
    "published gemma4 gguf": (GEMMA4_ANSWER, "<turn|>"),
    "published qwen3": (QWEN3_ANSWER, "<|im_end|>"),
}
FRAMES = {
    "gemma3": ["<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<image_soft_token>"],
    "gemma4": ["<bos>", "<eos>", "<pad>", "<unk>", "<|turn>", "<turn|>", "<|image|>", "<|image>", "<|tool_response>"],
    "qwen3": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
}


@pytest.fixture(params=["gemma3", "gemma4", "qwen3"])
def made(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def text_of(family: Family, token_ids: list[int], skip_special_tokens: bool) -> str:
    """Piece by piece, each of which is final."""
    stream, shown = family.text.detokenizer(skip_special_tokens=skip_special_tokens), ""
    for token_id in token_ids:
        shown += stream.push(token_id)
    return str(shown + stream.finish())


def test_markers_inside_an_answer_stay(family: Family, request: pytest.FixtureRequest) -> None:
    answer, end = ANSWERS[request.node.callspec.params["family"]]
    token_ids = family.text.encode(answer + end, add_special_tokens=False)
    assert family.text.decode(token_ids) == answer
    assert family.text.decode(token_ids, skip_special_tokens=False) == answer + end
    assert text_of(family, token_ids, True) == answer
    assert text_of(family, token_ids, False) == answer + end


def test_frames_are_left_out(made: str, family_named: FamilyNamed) -> None:
    family = family_named(made)
    for frame in FRAMES[made]:
        token_ids = [*family.text.encode("a", add_special_tokens=False), *family.ids(frame)]
        assert family.text.decode(token_ids) == "a"
        assert family.text.decode(token_ids, skip_special_tokens=False) == f"a{frame}"


def test_a_prompt_is_shown_with_and_without_its_frames(made: str, family_named: FamilyNamed) -> None:
    family = family_named(made)
    messages = [{"role": "user", "content": "Hello"}]
    rendered = family.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    token_ids = family.text.encode_chat(messages)
    assert family.text.decode(token_ids, skip_special_tokens=False) == rendered
    for frame in FRAMES[made]:
        rendered = rendered.replace(frame, "")
    assert family.text.decode(token_ids) == rendered


@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_pieces_add_up_to_the_decoded_text(family: Family, skip_special_tokens: bool) -> None:
    """For valid text with special tokens anywhere, between the bytes of a character too."""
    rng, controls = random.Random(7), family.ids(*family.controls)
    for _ in range(200):
        text = "".join(rng.choice(["a", " ", "  ", "é", "中", "😀", "\n", "<"]) for _ in range(rng.randint(0, 12)))
        token_ids = family.text.encode(text, add_special_tokens=False)
        for _ in range(rng.randint(0, 4)):
            token_ids.insert(rng.randint(0, len(token_ids)), rng.choice(controls))
        decoded = family.text.decode(token_ids, skip_special_tokens=skip_special_tokens)
        shown = text_of(family, token_ids, skip_special_tokens)
        assert shown == decoded or "\ufffd" in decoded  # a marker inside a character: what was shown stays
        if skip_special_tokens and not set(token_ids) & set(inner_ids(family)):
            assert shown == decoded == text


def inner_ids(family: Family) -> list[int]:
    return [token_id for token_id in family.ids(*family.controls) if family.text.decode([token_id])]


def plain_tokenizer(chat_template: str | None) -> TextTokenizer:
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "<turn>", "<mark>"])
    return TextTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>", chat_template=chat_template)
    )


@pytest.mark.parametrize(
    ("chat_template", "shown"),
    [
        (None, "a<turn>b<mark>c"),
        ("{% for m in messages %}<turn>{{ m.content }}{% endfor %}", "ab<mark>c"),
        ("{{ raise_exception('no') }}<turn>", "a<turn>b<mark>c"),
    ],
)
def test_what_frames_turns_is_what_the_template_writes(chat_template: str | None, shown: str) -> None:
    tokenizer = plain_tokenizer(chat_template)
    assert tokenizer.decode(tokenizer.encode("a<turn>b<mark>c<s>")) == shown


def test_nothing_decodes_to_nothing(family: Family) -> None:
    assert family.text.decode([]) == family.text.decode([], skip_special_tokens=False) == ""
    assert family.text.decode(family.ids(family.eos[0])) == ""


@pytest.mark.skipif("PUBLISHED_TOKENIZERS" not in os.environ, reason="PUBLISHED_TOKENIZERS names no folder of them")
@pytest.mark.parametrize(("name", "is_special"), [("published gemma4", True), ("published gemma4 gguf", False)])
def test_the_published_markers_of_gemma4(family_named: FamilyNamed, name: str, is_special: bool) -> None:
    family = family_named(name)
    assert family.ids("<|channel>", "<channel|>", "<|turn>", "<turn|>") == [100, 101, 105, 106]
    assert family.hf.added_tokens_decoder[100].special == is_special
    assert "<|channel>" not in family.hf.decode([100, 106], skip_special_tokens=True) or not is_special
    assert family.text.decode([100, 106]) == "<|channel>"
