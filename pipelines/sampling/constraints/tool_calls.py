"""Grammars of tool calls: what a family writes, with arguments that its tools' JSON schemas allow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import InputError
from pipelines.sampling.constraints.compiler import JSON_STYLE, ConstraintCompiler
from pipelines.sampling.constraints.constraint import Constraint
from pipelines.sampling.constraints.gemma4_arguments import Gemma4Arguments
from pipelines.sampling.constraints.limits import checked_schema
from pipelines.sampling.constraints.thinking import Thinking
from pipelines.sampling.constraints.vocabulary import GrammarVocabulary, literal, text_without

MAX_CALLS = 32
"""Calls of one answer that is held to calls: a weak model goes on with them for ever."""
_MAX_CHARACTERS = 2**20


@dataclass(frozen=True)
class _Syntax:
    """opener, closer: markers of a call; separator: between two; head, tail: text within the markers.

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


_SYNTAXES = {
    "qwen3": _Syntax("<tool_call>", "</tool_call>", "\n", '\n{"name": "', "}\n", "arguments"),
    "gemma4": _Syntax("<|tool_call>", "<tool_call|>", head="call:"),
    "llama3": _Syntax(
        separator="; ", head='{"name": "', tail="}", arguments_key="parameters", text=r"/\s*[^\s{](?s:.*)/"
    ),
    "gemma3": _Syntax(
        separator="\n", head='{"name": "', tail="}", arguments_key="parameters", text=r"/\s*[^\s{](?s:.*)/"
    ),
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
        if parameters.setdefault("type", "object") != "object":
            raise InputError(f"the parameters of the tool {self.name!r} must be a JSON schema of an object")
        return parameters


def tool_call_constraint(
    compiler: ConstraintCompiler,
    family: str,
    tools: Sequence[Mapping[str, Any]],
    choice: str | Mapping[str, Any] | None = None,
    parallel: bool = True,
    thinking: Thinking | None = None,
) -> Constraint | None:
    """Holds an answer to the calls that a request wants, in the syntax that the family's parser reads.

    - "required": one call or more, of any tool; a named tool: one call of it. Arguments are valid by the tool's schema.
    - "auto": text, calls or both. There is a grammar only if `parallel` is false, or a tool is strict; in it, the
      arguments of tools that are not strict are any JSON object.

    Args:
        compiler: Of the model.
        family: Name of a tool parser: one of TOOL_PARSERS, but neither "auto" nor "none".
        tools: As in the OpenAI API: `{"type": "function", "function": {"name", "parameters", "strict"}}`.
        choice: "none", "auto", "required", or `{"type": "function", "function": {"name"}}`; None: "auto".
        parallel: Whether there may be several calls.
        thinking: What may come before.

    Returns:
        The constraint; None where the answer is free.

    Raises:
        InputError: The choice names no tool, or a schema that must hold has a feature that is not supported.
    """
    wanted = _wanted([_tool(tool) for tool in tools], choice)
    is_forced = choice not in (None, "auto", "none")
    parallel = parallel and not isinstance(choice, Mapping)
    is_free = choice == "none" or not (is_forced or not parallel or any(tool.is_strict for tool in wanted))
    if is_free or not wanted:
        return None
    lark = _grammar(compiler.warm_up(), _SYNTAXES[family], wanted, is_forced, MAX_CALLS if parallel else 1)
    return compiler.grammar(lark, thinking, max_characters=_MAX_CHARACTERS)


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
    vocabulary: GrammarVocabulary, syntax: _Syntax, tools: Sequence[_Tool], is_forced: bool, max_calls: int
) -> str:
    opener = vocabulary.marker(syntax.opener) if syntax.opener else ""
    closer = vocabulary.marker(syntax.closer) if syntax.closer else ""
    rules, variants = [], []
    for number, tool in enumerate(tools):
        parameters = tool.checked_parameters() if is_forced or tool.is_strict else {"type": "object"}
        write = _json_arguments if syntax.arguments_key else _gemma4_arguments
        expression, more = write(vocabulary, syntax, tool.name, parameters, number)
        variants.append(f"tool_{number}")
        rules += [f"tool_{number}: {expression}", *more]
    tail = literal(syntax.tail) if syntax.tail else ""
    separator = literal(syntax.separator) if syntax.separator else ""
    rules.append(f"rest: {literal(syntax.head)} ({' | '.join(variants)}) {tail} {closer}")
    more_calls = f"({separator} {opener} rest){{0,{max_calls - 1}}}" if max_calls > 1 else ""
    return "\n".join([*_start(vocabulary, syntax, opener, is_forced), *rules, f"calls: rest {more_calls}"])


def _start(vocabulary: GrammarVocabulary, syntax: _Syntax, opener: str, is_forced: bool) -> list[str]:
    """The rules before the calls: `calls` begins after the first opener."""
    if is_forced:
        return [f"start: {opener} calls"]
    if not syntax.opener:
        return ["start: TEXT | calls", f"TEXT: {syntax.text}"]
    text = text_without(syntax.opener)
    return ["start: TEXT | before calls", f"TEXT: {text}", vocabulary.text_until(syntax.opener, "before")]


def _json_arguments(
    vocabulary: GrammarVocabulary, syntax: _Syntax, name: str, parameters: dict[str, Any], number: int
) -> tuple[str, list[str]]:
    start = literal(f'{json.dumps(name, ensure_ascii=False)[1:]}, "{syntax.arguments_key}": ')
    return f"{start} %json {json.dumps({**parameters, 'x-guidance': JSON_STYLE})}", []


def _gemma4_arguments(
    vocabulary: GrammarVocabulary, syntax: _Syntax, name: str, parameters: dict[str, Any], number: int
) -> tuple[str, list[str]]:
    arguments = Gemma4Arguments(vocabulary, parameters, f"args_{number}")
    return f"{literal(name)} {arguments.start}", arguments.rules
