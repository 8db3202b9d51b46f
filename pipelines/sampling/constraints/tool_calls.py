"""Grammars of tool calls: what a family writes, with arguments that its tools' JSON schemas allow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.errors import InputError
from pipelines.sampling.constraints.compiler import ConstraintCompiler
from pipelines.sampling.constraints.constraint import Constraint
from pipelines.sampling.constraints.gemma4_arguments import Gemma4Arguments
from pipelines.sampling.constraints.limits import checked_schema
from pipelines.sampling.constraints.rules import JSON_STYLE, Rule
from pipelines.sampling.constraints.thinking import Thinking
from pipelines.sampling.constraints.vocabulary import GrammarVocabulary, literal, text_without

MAX_CALLS = 32
"""Calls of one answer that is held to calls: a weak model goes on with them for ever."""
_MAX_CHARACTERS = 2**20


@dataclass(frozen=True)
class _Syntax:
    """opener, closer: markers of a call; separator: between two; head, tail: what stands within the markers, in Lark.

    arguments_key: of JSON objects; empty: Gemma 4's own syntax. text: terminal of an answer without calls, where calls
    have no opener.
    """

    opener: str = ""
    closer: str = ""
    separator: str = ""
    head: str = ""
    tail: str = ""
    arguments_key: str = ""
    text: str = ""


# Terminals are cut as those of JSON: one that goes on where another ends would keep it from matching, and so an answer
# in JSON from beginning as a call does.
_NAME = r'"{" "\"name\"" ": "'
_BARE_TEXT = r"/\s*[^\s{](?s:.*)/"
_SYNTAXES = {
    "qwen3": _Syntax("<tool_call>", "</tool_call>", "\n", rf'"\n" {_NAME}', r'"}" "\n"', "arguments"),
    "gemma4": _Syntax("<|tool_call>", "<tool_call|>", head='"call:"'),
    "llama3": _Syntax(separator="; ", head=_NAME, tail='"}"', arguments_key="parameters", text=_BARE_TEXT),
    "gemma3": _Syntax(separator="\n", head=_NAME, tail='"}"', arguments_key="parameters", text=_BARE_TEXT),
}


@dataclass(frozen=True)
class _Tool:
    """name: as the model calls it. parameters: JSON schema. is_strict: whether that always holds."""

    name: str
    parameters: Any
    is_strict: bool

    def checked_parameters(self) -> dict[str, Any]:
        """The JSON schema, of an object."""
        parameters = checked_schema(self.parameters)
        if parameters.setdefault("type", "object") not in ("object", ["object"]):
            raise InputError("the parameters must be a JSON schema of an object")
        return parameters


def tool_call_constraint(
    compiler: ConstraintCompiler,
    family: str,
    tools: Sequence[Mapping[str, Any]],
    choice: str | Mapping[str, Any] | None = None,
    parallel: bool = True,
    thinking: Thinking | None = None,
    answer: Rule | None = None,
) -> Constraint | None:
    """Holds an answer to the calls that a request wants, in the syntax that the family's parser reads.

    - "required": one call or more, of any tool; a named tool: one call of it. Arguments are valid by the tool's schema.
    - "auto": text, calls or both. There is a grammar only if a tool is strict, or `answer` is given; in it, the
      arguments of tools that are not strict are any JSON object.

    Args:
        compiler: Of the model.
        family: Name of a tool parser: one of TOOL_PARSERS, but neither "auto" nor "none".
        tools: As in the OpenAI API: `{"type": "function", "function": {"name", "parameters", "strict"}}`.
        choice: "none", "auto", "required", or `{"type": "function", "function": {"name"}}`; None: "auto".
        parallel: Whether there may be several calls; it counts where there is a grammar.
        thinking: What may come before.
        answer: What an answer without calls is held to, where they are not forced; it has no text beside the calls.

    Returns:
        The constraint; None where the answer is free.

    Raises:
        InputError: The choice names no tool, or a schema that must hold has a feature that is not supported.
    """
    wanted = _wanted([_tool(tool) for tool in tools], choice)
    is_forced = choice not in (None, "auto", "none")
    has_grammar = is_forced or answer is not None or any(tool.is_strict for tool in wanted)
    if choice == "none" or not has_grammar or not wanted:
        return None
    max_calls = MAX_CALLS if parallel and not isinstance(choice, Mapping) else 1
    answer = None if is_forced else answer
    lark = _grammar(compiler.warm_up(), _SYNTAXES[family], wanted, is_forced, max_calls, answer is not None)
    try:
        return compiler.compile(Rule.grammar(lark, _MAX_CHARACTERS), thinking, answer)
    except InputError as error:
        raise _culprit(compiler, wanted, is_forced) or error from None


def _culprit(compiler: ConstraintCompiler, tools: Sequence[_Tool], is_forced: bool) -> InputError | None:
    """The error of the tool that can't be compiled by itself either; None if each can."""
    try:
        for tool in tools:
            with _naming(tool):
                if is_forced or tool.is_strict:
                    compiler.json_schema(tool.checked_parameters())
    except InputError as error:
        return error
    return None


@contextmanager
def _naming(tool: _Tool) -> Iterator[None]:
    """Names the tool in the errors of the block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"the tool {tool.name!r}: {error}") from error


def _wanted(tools: list[_Tool], choice: str | Mapping[str, Any] | None) -> list[_Tool]:
    """The tools that a choice leaves."""
    if not isinstance(choice, Mapping):
        if choice not in (None, "none", "auto", "required"):
            raise InputError(f"tool_choice={choice!r} must be none, auto, required or a named function")
        return tools
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise InputError("tool_choice must have the name of a function")
    if not (named := [tool for tool in tools if tool.name == name]):
        raise InputError(f"tool_choice names {name!r}, which is none of the tools")
    return named


def _tool(tool: Mapping[str, Any]) -> _Tool:
    function = tool.get("function", tool)
    return _Tool(str(function["name"]), function.get("parameters") or {}, bool(function.get("strict")))


def _grammar(
    vocabulary: GrammarVocabulary,
    syntax: _Syntax,
    tools: Sequence[_Tool],
    is_forced: bool,
    max_calls: int,
    has_answer: bool,
) -> str:
    opener = vocabulary.marker(syntax.opener) if syntax.opener else ""
    closer = vocabulary.marker(syntax.closer) if syntax.closer else ""
    rules, variants = [], []
    for number, tool in enumerate(tools):
        write = _json_arguments if syntax.arguments_key else _gemma4_arguments
        with _naming(tool):
            parameters = tool.checked_parameters() if is_forced or tool.is_strict else {"type": "object"}
            expression, more = write(vocabulary, syntax, tool.name, parameters, number)
        variants.append(f"tool_{number}")
        rules += [f"tool_{number}: {expression}", *more]
    separator = literal(syntax.separator) if syntax.separator else ""
    rules.append(f"rest: {syntax.head} ({' | '.join(variants)}) {syntax.tail} {closer}")
    more_calls = f"({separator} {opener} rest){{0,{max_calls - 1}}}" if max_calls > 1 else ""
    start = [f"start: @answer | {opener} calls"] if has_answer else _start(vocabulary, syntax, opener, is_forced)
    return "\n".join([*start, *rules, f"calls: rest {more_calls}"])


def _start(vocabulary: GrammarVocabulary, syntax: _Syntax, opener: str, is_forced: bool) -> list[str]:
    """The rules before the calls, where text is free: `calls` begins after the first opener."""
    if is_forced:
        return [f"start: {opener} calls"]
    if not syntax.opener:
        return ["start: TEXT | calls", f"TEXT: {syntax.text}"]
    text = text_without(syntax.opener)
    return ["start: TEXT | before calls", f"TEXT: {text}", vocabulary.text_until(syntax.opener, "before")]


def _json_arguments(
    vocabulary: GrammarVocabulary, syntax: _Syntax, name: str, parameters: dict[str, Any], number: int
) -> tuple[str, list[str]]:
    quoted = [literal(json.dumps(text, ensure_ascii=False)) for text in (name, syntax.arguments_key)]
    return f'{quoted[0]} ", " {quoted[1]} ": " %json {json.dumps({**parameters, "x-guidance": JSON_STYLE})}', []


def _gemma4_arguments(
    vocabulary: GrammarVocabulary, syntax: _Syntax, name: str, parameters: dict[str, Any], number: int
) -> tuple[str, list[str]]:
    arguments = Gemma4Arguments(vocabulary, parameters, f"args_{number}")
    return f"{literal(name)} {arguments.start}", arguments.rules
