"""Published chat templates: which parsers they choose, and calls that they render are found again."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from published import FOLDERS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from pipelines.text.parsers import answer_format, parse_answer, takes_tools, with_tools_as_text
from pipelines.text.tokenizer import TextTokenizer

TEMPLATES = {
    name: path.read_text() for name, folder in FOLDERS.items() if (path := folder / "chat_template.jinja").exists()
}
LLAMA3 = '{{ "<|start_header_id|>" }}{"name": function name, "parameters": dictionary}{{ "<|python_tag|>" }}'
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}  # fmt: skip  # noqa: E501


def text_tokenizer(template: str) -> TextTokenizer:
    tokenizer = Tokenizer(WordLevel({"w": 0}, unk_token="w"))
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", chat_template=template))


def render(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return text_tokenizer(template).render_chat(messages, **options)


def value(rng: random.Random, depth: int = 0) -> Any:
    """A random JSON value."""
    kind = rng.randint(0, 4 if depth > 2 else 6)
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if kind == 6:
        return {key: value(rng, depth + 1) for key in rng.sample(["a", "größe", "b_c", "x-y", "Z"], rng.randint(0, 3))}
    strings = [
        "",
        "Paris",
        'a "quoted" } ] text',
        "line\nbreak\ttab",
        "中文 é 😀",
        "</tool_call",
        "<|",
        "5",
        "back\\slash",
        " ",
    ]
    return rng.choice([rng.choice(strings), rng.randint(-99, 99), round(rng.uniform(-9, 9), 3), True, False, None])


def test_formats_of_the_published_templates() -> None:
    for name, template in TEMPLATES.items():
        format = answer_format(template)
        found = (format.reasoning and format.reasoning.name, format.tools and format.tools.name)
        if "gemma-3" in name:
            assert found == (None, "gemma3") and not takes_tools(template)
        else:
            family = "gemma4" if "gemma-4" in name else "qwen3"
            assert found == (None if "Instruct" in name else family, family) and takes_tools(template)
    assert answer_format("").reasoning is None and answer_format("").tools is None
    assert answer_format("<tool_call><function=f>").tools is None
    llama = answer_format(LLAMA3)
    assert llama.tools is not None and llama.tools.name == "llama3" and llama.reasoning is None


def test_the_tokenizer_tells_its_template() -> None:
    template = TEMPLATES["Qwen__Qwen3-0.6B"]
    assert text_tokenizer(template).chat_template == template
    several = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"w": 0}, unk_token="w"))))
    assert several.chat_template == ""


@pytest.mark.parametrize(
    "name", ["Qwen__Qwen3-0.6B", "Qwen__Qwen3-4B-Instruct-2507", "google__gemma-4-E2B-it", "google__gemma-4-31B-it"]
)
def test_rendered_calls_are_found_again(name: str) -> None:
    template, question = TEMPLATES[name], {"role": "user", "content": "Q"}
    for seed in range(40):
        rng = random.Random(seed)
        keys = ["city", "b", "größe", "x-y", "nested"]
        calls = [
            (f"f_{i}", {key: value(rng) for key in rng.sample(keys, rng.randint(0, 4))})
            for i in range(rng.randint(1, 3))
        ]
        tool_calls = [
            {"id": f"c{i}", "type": "function", "function": {"name": function, "arguments": arguments}}
            for i, (function, arguments) in enumerate(calls)
        ]
        thought = {} if "Instruct" in name else {"reasoning_content": "Hm.\nSo."}
        answer = {
            "role": "assistant",
            "content": "Well:" if "Qwen" in name else "",
            "tool_calls": tool_calls,
            **thought,
        }
        before = render(template, [question], add_generation_prompt=False)
        text = render(template, [question, answer], add_generation_prompt=False).removeprefix(before)
        text = text.removeprefix("<|im_start|>assistant\n").removeprefix("<|turn>model\n")
        for end in ("<|im_end|>\n", "<|tool_response>", "<turn|>\n"):
            text = text.removesuffix(end)
        parsed = parse_answer(answer_format(template).parser([function for function, _ in calls]), text)
        assert [(call.name, json.loads(call.arguments)) for call in parsed.tool_calls] == calls
        assert parsed.content == answer["content"] and parsed.reasoning == thought.get("reasoning_content", "")


def test_whether_prompts_open_thinking() -> None:
    question: dict[str, Any] = {"role": "user", "content": "Q <think>"}
    syntax = answer_format(TEMPLATES["Qwen__Qwen3-0.6B"]).reasoning
    assert syntax is not None
    for options in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
        assert not syntax.syntax.is_open(render(TEMPLATES["Qwen__Qwen3-0.6B"], [question], **options))
    gemma4, template = answer_format(TEMPLATES["google__gemma-4-E2B-it"]).reasoning, TEMPLATES["google__gemma-4-E2B-it"]
    assert gemma4 is not None
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": "y"}}}
    turns = [
        question,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "5"},
    ]
    assert gemma4.syntax.is_open(render(template, turns, enable_thinking=True))
    assert not gemma4.syntax.is_open(render(template, turns))
    assert not gemma4.syntax.is_open(render(template, [question], enable_thinking=True))


def test_tools_as_text() -> None:
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": f'{{"x": "{i}"}}'}} for i in (0, 1)
    ]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "user", "content": "Please."},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c0", "content": "zero"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "one"}]},
        {"role": "user", "content": "And?"},
    ]
    rewritten = with_tools_as_text(messages, [TOOL])
    assert [message["role"] for message in rewritten] == ["system", "user", "assistant", "user"]
    assert (
        rewritten[0]["content"].startswith("Be brief.\n\nYou have access")
        and json.dumps(TOOL["function"]) in rewritten[0]["content"]
    )
    assert rewritten[1]["content"] == [
        {"type": "image"},
        {"type": "text", "text": "What?"},
        {"type": "text", "text": "Please."},
    ]
    assert rewritten[3]["content"] == "Result of f: zero\n\nResult of f: one\n\nAnd?"
    parsed = parse_answer(answer_format("", "none", "gemma3").parser(["f"]), rewritten[2]["content"])
    assert [(call.name, json.loads(call.arguments)) for call in parsed.tool_calls] == [
        ("f", {"x": "0"}),
        ("f", {"x": "1"}),
    ]
    text = render(TEMPLATES["google__gemma-3-4b-it"], rewritten)
    assert text.index("Be brief") < text.index("What?") < text.index('{"x": "0"}') < text.index("Result of f: one")
    assert with_tools_as_text(messages[1:2], [TOOL])[0]["role"] == "system"
    assert with_tools_as_text(messages[2:3], []) == messages[2:3]
