"""The published chat templates, rendered by the tokenizer that pipelines use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from published import FOLDERS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from pipelines.text.tokenizer import TextTokenizer

TEMPLATES = {name: folder / "chat_template.jinja" for name, folder in FOLDERS.items()}
TEMPLATES = {name: path for name, path in TEMPLATES.items() if path.exists()}
THINKING = [name for name in TEMPLATES if name.startswith("Qwen__") and "Instruct" not in name]


def tokenizer(template: Path) -> TextTokenizer:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"w": 0}, unk_token="w")),
        bos_token="<bos>",
        chat_template=template.read_text(),
    )
    return TextTokenizer(fast)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_rendered_up_to_where_the_answer_begins(name: str) -> None:
    turns = [("user", "First question"), ("assistant", "First answer"), ("user", "Second question")]
    messages = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer(TEMPLATES[name]).render_chat(messages)
    places = [text.index(content) for _, content in turns]
    assert places == sorted(places)
    assert not text.rstrip().endswith("Second question")


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize(
    ("arguments", "ending"),
    [
        ({}, "<|im_start|>assistant\n"),
        ({"enable_thinking": True}, "<|im_start|>assistant\n"),
        ({"enable_thinking": False}, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_qwen_thinks_unless_it_is_told_not_to(name: str, arguments: dict[str, Any], ending: str) -> None:
    messages = [{"role": "user", "content": "Why?"}]
    assert tokenizer(TEMPLATES[name]).render_chat(messages, **arguments).endswith(ending)
