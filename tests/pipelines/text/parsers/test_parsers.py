"""Parsers of answers: what they find, piece by piece as at once, and what malformed text becomes."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable

import pytest

from pipelines.errors import InputError
from pipelines.text.parsers import (
    AnswerFormat,
    CollectedCall,
    Content,
    ParsedAnswer,
    ToolCall,
    answer_format,
    parse_answer,
)

NAMES = ("add", "get_weather")
QWEN3_CALL = '<tool_call>\n{"name": "add", "arguments": {"x": 1, "s": "a}\\"</tool_call>"}}\n</tool_call>'
GEMMA4_CALL = '<|tool_call>call:add{s:<|"|>a}"\n<tool_call|><|"|>,x:1}<tool_call|>'
LLAMA3_CALL = '{"name": "add", "parameters": {"x": 1, "s": "a}\\""}}'
ARGUMENTS = {
    "qwen3": '{"x": 1, "s": "a}\\"</tool_call>"}',
    "gemma4": '{"s": "a}\\"\\n<tool_call|>", "x": 1}',
    "llama3": '{"x": 1, "s": "a}\\""}',
    "gemma3": '{"x": 1, "s": "a}\\""}',
}

# (reasoning parser, tool parser, answer, content, reasoning, names of the calls)
ANSWERS = [
    ("qwen3", "qwen3", "It is 5.", "It is 5.", "", []),
    ("qwen3", "qwen3", "<think>\nHm. <b\n</think>\n\nIt is 5.", "It is 5.", "Hm. <b", []),
    ("qwen3", "qwen3", "<think>\n\n</think>\n\nIt is\n\n5.\n", "It is\n\n5.\n", "", []),
    ("qwen3", "qwen3", "Say <think> or </think>.", "Say <think> or </think>.", "", []),
    ("qwen3", "qwen3", "<think>never closed\n", "", "never closed", []),
    ("none", "qwen3", "<think>a</think>b", "<think>a</think>b", "", []),
    ("qwen3", "qwen3", f"<think>\na {QWEN3_CALL}\n</think>\n\n{QWEN3_CALL}", "", f"a {QWEN3_CALL}", ["add"]),
    ("qwen3", "qwen3", f"Wait.\n{QWEN3_CALL}\n{QWEN3_CALL}", "Wait.", "", ["add", "add"]),
    ("qwen3", "qwen3", f"{QWEN3_CALL}\nDone. ", "Done. ", "", ["add"]),
    ("gemma4", "gemma4", "<|channel>thought\nHm.\n<channel|>It is 5.", "It is 5.", "Hm.", []),
    ("gemma4", "gemma4", "<|channel>thought\n<channel|>It is 5.", "It is 5.", "", []),
    ("gemma4", "gemma4", f"A <|channel>thought\nHm.<channel|>{GEMMA4_CALL}{GEMMA4_CALL}", "A", "Hm.", ["add", "add"]),
    ("none", "gemma4", f"<|channel>x<channel|>{GEMMA4_CALL}", "<|channel>x<channel|>", "", ["add"]),
    ("none", "llama3", LLAMA3_CALL, "", "", ["add"]),
    ("none", "llama3", f"<|python_tag|>{LLAMA3_CALL}; {LLAMA3_CALL}\n", "", "", ["add", "add"]),
    ("none", "llama3", f" \n{LLAMA3_CALL}", "", "", ["add"]),
    ("none", "llama3", f"See {LLAMA3_CALL}", f"See {LLAMA3_CALL}", "", []),
    ("none", "llama3", ' {"name": "Bob", "age": 3} ', ' {"name": "Bob", "age": 3} ', "", []),
    ("none", "llama3", '{"name": "add", "age": 3}', '{"name": "add", "age": 3}', "", []),
    ("none", "llama3", "<|python_tag|>search.call(query=1)", "<|python_tag|>search.call(query=1)", "", []),
    ("none", "gemma3", LLAMA3_CALL, "", "", ["add"]),
    ("none", "gemma3", f"```json\n{LLAMA3_CALL}\n{LLAMA3_CALL}\n```\n", "", "", ["add", "add"]),
    ("none", "gemma3", f"Well:\n```tool_code\n{LLAMA3_CALL}\n```", "Well:", "", ["add"]),
    ("none", "gemma3", '```json\n{"a": 1}\n```', '```json\n{"a": 1}\n```', "", []),
    ("none", "gemma3", "```python\nx = 1\n```", "```python\nx = 1\n```", "", []),
]
MALFORMED = [
    ("qwen3", "<tool_call>"),
    ("qwen3", "<tool_call>\n</tool_call>"),
    ("qwen3", "a <tool_call>\nadd(1)\n</tool_call> b"),
    ("qwen3", '<tool_call>\n{"name": 5, "arguments": {}}\n</tool_call>'),
    ("qwen3", '<tool_call>\n{"arguments": {}}\n</tool_call>'),
    ("qwen3", '<tool_call>\n{"name": "add", "arguments": 5}\n</tool_call>'),
    ("qwen3", '<tool_call>\n{"name": "add"'),
    ("qwen3", '<tool_call>\n{"name": "a\nb", "arguments": {}}'),
    ("qwen3", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    ("gemma4", "<|tool_call>"),
    ("gemma4", "<|tool_call>add{x:1}<tool_call|>"),
    ("gemma4", "<|tool_call>call:{x:1}<tool_call|>"),
    ("gemma4", "<|tool_call>call:add(x=1)<tool_call|>"),
    ("llama3", '{"name": "unknown", "parameters": {}}'),
    ("llama3", '{"name": "add", "param'),
    ("llama3", "{}"),
    ("llama3", "{"),
    ("gemma3", "```json\n[1, 2]\n```"),
]


def ids() -> Callable[[], str]:
    counter = itertools.count()
    return lambda: f"call_{next(counter)}"


def in_pieces(format: AnswerFormat, text: str, rng: random.Random | None, is_open: bool = False) -> ParsedAnswer:
    """Parses in random pieces, or character by character; checks the form of the deltas."""
    parser, answer, num_calls = format.parser(NAMES, is_open, ids()), ParsedAnswer(), 0
    while text:
        size = 1 if rng is None else rng.randint(1, 12)
        deltas, text = parser.push(text[:size]), text[size:]
        answer.add(deltas)
        for delta in deltas:
            if isinstance(delta, ToolCall):
                is_first = delta.id is not None
                assert is_first == (delta.name is not None) and delta.index == num_calls - (not is_first)
                num_calls += is_first
                assert is_first or delta.arguments
            else:
                assert delta.text
    answer.add(parser.finish())
    return answer


def assert_same_in_pieces(format: AnswerFormat, text: str, is_open: bool = False) -> ParsedAnswer:
    whole = parse_answer(format.parser(NAMES, is_open, ids()), text)
    for seed in range(20):
        assert in_pieces(format, text, random.Random(seed) if seed else None, is_open) == whole
    return whole


@pytest.mark.parametrize(("reasoning", "tools", "text", "content", "thought", "names"), ANSWERS)
def test_answers(reasoning: str, tools: str, text: str, content: str, thought: str, names: list[str]) -> None:
    answer = assert_same_in_pieces(answer_format("", reasoning, tools), text)
    assert (answer.content, answer.reasoning) == (content, thought)
    assert [call.name for call in answer.tool_calls] == names
    assert all(call.arguments == ARGUMENTS[tools] for call in answer.tool_calls)
    assert [call.id for call in answer.tool_calls] == [f"call_{i}" for i in range(len(names))]


@pytest.mark.parametrize(("tools", "text"), MALFORMED)
def test_malformed_calls_are_content(tools: str, text: str) -> None:
    assert assert_same_in_pieces(answer_format("", "none", tools), text) == ParsedAnswer(text)


@pytest.mark.parametrize(("tools", "text", "arguments", "content"), [
    ("qwen3", '<tool_call>{"name": "add", "arguments": {"x": 1,, 2}}</tool_call>', '{"x": 1,', ", 2}}</tool_call>"),
    ("qwen3", '<tool_call>{"name": "add", "arguments": {"x": "cut', '{"x": "cut', ""),
    ("qwen3", '<tool_call>{"name": "add", "arguments": {}}</tool_', "{}", ""),
    ("qwen3", '<tool_call>{"name": "add", "arguments": {}}} </tool_call>', "{}", "} </tool_call>"),
    ("gemma4", '<|tool_call>call:add{x:<|"|>cut', '{"x": "cut', ""),
    ("gemma4", "<|tool_call>call:add{x:[1}}<tool_call|>", '{"x": [1', "}}<tool_call|>"),
])  # fmt: skip
def test_a_call_that_breaks_late_keeps_its_arguments(tools: str, text: str, arguments: str, content: str) -> None:
    answer = assert_same_in_pieces(answer_format("", "none", tools), text)
    assert answer == ParsedAnswer(content, "", [CollectedCall("call_0", "add", arguments)])


@pytest.mark.parametrize(("written", "arguments"), [
    ("{}", {}),
    ("{x:1,y:-2.5e3,z:true,n:null}", {"x": 1, "y": -2500.0, "z": True, "n": None}),
    ('{s:<|"|><|"|>}', {"s": ""}),
    ('{s:<|"|>a\\n"<|" <|x é\t<|"|>}', {"s": 'a\\n"<|" <|x é\t'}),
    ("{o:{a:1,b:{}},l:[1,[2],{k:3},[]]}", {"o": {"a": 1, "b": {}}, "l": [1, [2], {"k": 3}, []]}),
    ('{<|"|>a:b<|"|>: 1 , l: [ 1 , 2 ] }', {"a:b": 1, "l": [1, 2]}),
    ("{city:New York,day:2024-01-02,n:01}", {"city": "New York", "day": "2024-01-02", "n": "01"}),
    ("{größe:1,}", {"größe": 1}),
    ('{l:[<|"|>a<|"|>,<|"|>b,]<|"|>,]}', {"l": ["a", "b,]"]}),
])  # fmt: skip
def test_gemma4_arguments(written: str, arguments: object) -> None:
    text = f"<|tool_call>call:add{written}<tool_call|>"
    (call,) = assert_same_in_pieces(answer_format("", "none", "gemma4"), text).tool_calls
    assert json.loads(call.arguments) == arguments


@pytest.mark.parametrize("written", [
    '{"arguments": {"x": [1, {"y": "z"}]}, "name": "add"}',
    '{"id": "a", "type": "function", "name": "add", "parameters": {"x": [1, {"y": "z"}]}}',
    '{"arguments": "{\\"x\\": [1, {\\"y\\": \\"z\\"}]}", "name": "add"}',
    ' { "name" : "add" , "arguments" : {"x": [1, {"y": "z"}]} , "n": -1.5e3, "t": [true, null] } ',
])  # fmt: skip
def test_json_calls_in_other_orders(written: str) -> None:
    (call,) = assert_same_in_pieces(answer_format("", "none", "qwen3"), f"<tool_call>{written}</tool_call>").tool_calls
    assert call.name == "add" and json.loads(call.arguments) == {"x": [1, {"y": "z"}]}


@pytest.mark.parametrize("written", ['{"name": "add"}', '{"name": "add", "arguments": null}'])
def test_a_marked_call_without_arguments(written: str) -> None:
    (call,) = assert_same_in_pieces(answer_format("", "none", "qwen3"), f"<tool_call>{written}</tool_call>").tool_calls
    assert call.arguments == "{}"


def test_arguments_stream() -> None:
    parser = answer_format("", "none", "qwen3").parser(NAMES, new_id=ids())
    assert parser.push('A<tool_call>{"name": "add", ') == [Content("A")]
    assert parser.push('"arguments": {"x"') == [ToolCall(0, "call_0", "add", '{"x"')]
    assert parser.push(': "é') == [ToolCall(0, arguments=': "é')]
    assert parser.push('"}}') == [ToolCall(0, arguments='"}')]
    assert parser.push("</tool_call>") == parser.finish() == []


@pytest.mark.parametrize(("tools", "text"), [
    ("qwen3", f"Well: {QWEN3_CALL}\n{QWEN3_CALL} and more"),
    ("gemma4", f"Well: {GEMMA4_CALL}{GEMMA4_CALL} and more"),
    ("llama3", f"{LLAMA3_CALL}; {LLAMA3_CALL} and more"),
    ("gemma3", f"{LLAMA3_CALL}\n{LLAMA3_CALL} and more"),
])  # fmt: skip
def test_what_follows_the_last_call_that_may_be_is_dropped(tools: str, text: str) -> None:
    format = answer_format("", "none", tools)
    for max_calls in (1, 2):
        parser, answer = format.parser(NAMES, new_id=ids(), max_calls=max_calls), ParsedAnswer()
        for character in text:
            answer.add(parser.push(character))
            assert parser.is_done == (len(answer.tool_calls) == max_calls and parser.has_whole_calls)
        assert parser.is_done and parser.has_whole_calls and not parser.finish()
        assert [call.arguments for call in answer.tool_calls] == [ARGUMENTS[tools]] * max_calls
        assert "more" not in answer.content
        assert parse_answer(format.parser(NAMES, new_id=ids(), max_calls=max_calls), text) == answer


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("text", "has_whole_calls"), [
    (QWEN3_CALL, True),
    (f"{QWEN3_CALL}\n{QWEN3_CALL} text", True),
    (QWEN3_CALL.removesuffix("\n</tool_call>"), True),
    (QWEN3_CALL[:-16], False),
    (f"{QWEN3_CALL}\n{QWEN3_CALL[:-16]}", False),
    (f"{QWEN3_CALL}\n<tool_call>", True),
    (QWEN3_CALL.replace(": 1", ": 1,, "), False),
    ("no call", False),
])  # fmt: skip
def test_whether_all_calls_are_complete(text: str, has_whole_calls: bool) -> None:
    parser = answer_format("", "none", "qwen3").parser(NAMES)
    parser.push(text)
    assert parser.has_whole_calls == has_whole_calls
    parser.finish()
    assert parser.has_whole_calls == has_whole_calls
    assert not answer_format("", "none", "qwen3").parser().has_whole_calls


@pytest.mark.parametrize(("written", "is_call"), [
    ('{"name": "\\ud800", "arguments": {}}', False),
    ('{"name": "add", "arguments": "\\ud800"}', False),
    ('{"name": "add", "arguments": {"x": "\\ud800"}}', True),
    ('{"name": "add", "arguments": ""}', True),
])  # fmt: skip
def test_text_that_cant_be_sent_is_no_call(written: str, is_call: bool) -> None:
    """Half of a surrogate pair has no UTF-8; its escape within arguments is left to the client."""
    answer = assert_same_in_pieces(answer_format("", "none", "qwen3"), f"<tool_call>{written}</tool_call>")
    assert bool(answer.tool_calls) == is_call
    (answer.content + "".join(call.name + call.arguments for call in answer.tool_calls)).encode()
    assert all(is_json(call.arguments) for call in answer.tool_calls)


@pytest.mark.parametrize(("begun", "is_open", "rest"), [
    ("", False, ""),
    ("Well", False, "Well"),
    ("<think>\nHm", True, ""),
    ("<think>\nHm\n</think>\n\nWell", False, "Well"),
    ("<think>\nHm\n</think>\n\n<think>again", True, ""),
])  # fmt: skip
def test_where_a_message_ends_that_is_continued(begun: str, is_open: bool, rest: str) -> None:
    format = answer_format("", "qwen3").reasoning
    assert format is not None and format.syntax.split(begun) == (is_open, rest)


def test_thinking_that_the_prompt_opened() -> None:
    for name, text in (("qwen3", "\nHm.\n</think>\n\n5"), ("gemma4", "Hm.\n<channel|>5")):
        answer = assert_same_in_pieces(answer_format("", name, "none"), text, is_open=True)
        assert answer == ParsedAnswer("5", "Hm.")


@pytest.mark.parametrize(("name", "prompt", "is_open"), [
    ("qwen3", "<|im_start|>assistant\n<think>\n", True),
    ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
    ("qwen3", "<|im_start|>assistant\n", False),
    ("gemma4", "<tool_response|><|channel>thought\n", True),
    ("gemma4", "<|turn>model\n", False),
])  # fmt: skip
def test_whether_a_prompt_opens_thinking(name: str, prompt: str, is_open: bool) -> None:
    format = answer_format("", name).reasoning
    assert format is not None and format.syntax.is_open(prompt) == is_open
    assert format.syntax.is_over(prompt) == ("</think>" in prompt)


def test_without_tools_nothing_is_a_call() -> None:
    for name, text in (("qwen3", QWEN3_CALL), ("gemma4", GEMMA4_CALL), ("llama3", LLAMA3_CALL)):
        assert parse_answer(answer_format("", "none", name).parser(), text) == ParsedAnswer(text)


def test_any_text_in_any_pieces() -> None:
    """Pieces of calls and thinking in a random order: nothing raises, and pieces make no difference."""
    for tools, openers in (
        ("qwen3", QWEN3_CALL),
        ("gemma4", GEMMA4_CALL),
        ("llama3", LLAMA3_CALL),
        ("gemma3", LLAMA3_CALL),
    ):
        for seed in range(150):
            rng = random.Random(seed)
            words = ["<think>", "</think>", "<|channel>", "thought\n", "<channel|>", "```json\n", "```", "\n", " ", "x"]
            cuts = [openers[: rng.randint(0, len(openers))], openers, openers[rng.randint(0, len(openers)) :], '<|"|>']
            text = "".join(rng.choice(words + cuts * 2) for _ in range(rng.randint(1, 12)))
            format = answer_format("", "gemma4" if tools == "gemma4" else "qwen3", tools)
            whole = parse_answer(format.parser(NAMES, False, ids()), text)
            for _ in range(3):
                assert in_pieces(format, text, rng) == whole, text
            assert len(parse_answer(format.parser(NAMES, max_calls=1), text).tool_calls) == min(
                len(whole.tool_calls), 1
            )


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="choose one of auto, none, qwen3, gemma4"):
        answer_format("", reasoning="deepseek")
    with pytest.raises(InputError, match="choose one of auto, none, qwen3, gemma4, llama3, gemma3"):
        answer_format("", tools="hermes")
