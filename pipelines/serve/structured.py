"""Structured output: the one form that a request gives its answer, by whichever field."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pydantic_core

from pipelines.sampling.constraints import Rule
from pipelines.serve.errors import bad_request
from pipelines.serve.fields import ResponseFormat, SamplingFields, StructuredOutputs

REFUSED = ("structural_tag", "ebnf", "guided_whitespace_pattern")
"""Fields by which clients of other servers constrain an answer; what is not honoured is refused."""
REFUSED_OPTIONS = ("structural_tag", "whitespace_pattern", "disable_additional_properties")
"""The same, of structured_outputs."""

_GBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_TYPES = "text, json_object, json_schema, regex or grammar"


@dataclass(frozen=True)
class AnswerForm:
    """A form of an answer. param: the field that gives it. rule: makes what the answer is held to, which takes time."""

    param: str
    rule: Callable[[], Rule]


def answer_form(request: SamplingFields) -> AnswerForm | None:
    """The form that a request gives its answer; None: any text. An empty text is as good as absence.

    Raises:
        ApiError: There are several, or one that is not supported.
    """
    _check_refused(request.model_extra or {}, REFUSED, "")
    forms = list(_forms(request))
    if len(forms) > 1:
        message = f"{forms[0].param} and {forms[1].param} both give the answer a form: give one of them."
        raise bad_request(message, forms[1].param)
    return forms[0] if forms else None


def _check_refused(given: dict[str, Any], refused: tuple[str, ...], path: str) -> None:
    for name in refused:
        if given.get(name):
            raise bad_request(f"{path}{name} is not supported.", f"{path}{name}")


def _forms(request: SamplingFields) -> Iterator[AnswerForm]:
    if request.response_format is not None:
        yield from _of_response_format(request.response_format)
    if request.structured_outputs is not None:
        yield from _of_structured_outputs(request.structured_outputs)
    for name in ("guided_json", "json_schema"):
        yield from _schema(name, getattr(request, name))
    for name in ("guided_regex", "regex"):
        yield from _regex(name, getattr(request, name))
    for name in ("guided_grammar", "grammar"):
        yield from _grammar(name, getattr(request, name))
    yield from _choice("guided_choice", request.guided_choice)


def _of_response_format(format: ResponseFormat) -> Iterator[AnswerForm]:
    path, own = "response_format", format.schema_
    if format.type == "json_object":
        yield from _schema(path, {"type": "object"} if own is None else own)
    elif format.type == "json_schema":
        schema = own if format.json_schema is None else format.json_schema.schema_
        if schema is None:
            raise bad_request(f"{path}.json_schema has no schema.", path)
        yield from _schema(path, schema)
    elif format.type == "regex":
        yield from _regex(path, _needed(format, "pattern"))
    elif format.type == "grammar":
        yield from _grammar(path, _needed(format, "grammar"))
    elif format.type != "text":
        raise bad_request(f"{path}: the type {format.type[:64]!r} is not supported; give {_TYPES}.", path)


def _needed(format: ResponseFormat, name: str) -> str:
    value: str | None = getattr(format, name)
    if not value:
        raise bad_request(f"response_format.{name} is missing.", "response_format")
    return value


def _of_structured_outputs(given: StructuredOutputs) -> Iterator[AnswerForm]:
    path = "structured_outputs."
    _check_refused(given.model_extra or {}, REFUSED_OPTIONS, path)
    yield from _schema(f"{path}json", given.json_)
    yield from _regex(f"{path}regex", given.regex)
    yield from _choice(f"{path}choice", given.choice)
    yield from _grammar(f"{path}grammar", given.grammar)
    if given.json_object:
        yield from _schema(f"{path}json_object", {"type": "object"})


def _schema(param: str, schema: Any) -> Iterator[AnswerForm]:
    if schema is not None and schema != "":
        yield AnswerForm(param, lambda: Rule.json_schema(_parsed(param, schema)))


def _parsed(param: str, schema: Any) -> Any:
    """A schema that may be the text of one."""
    if not isinstance(schema, str):
        return schema
    try:
        return pydantic_core.from_json(schema, allow_inf_nan=False)
    except ValueError as error:
        raise bad_request(f"{param} is no JSON: {error}.", param) from None


def _regex(param: str, pattern: str | None) -> Iterator[AnswerForm]:
    if pattern:
        yield AnswerForm(param, lambda: Rule.regex(pattern))


def _grammar(param: str, grammar: str | None) -> Iterator[AnswerForm]:
    if grammar:
        if _GBNF.search(grammar):
            raise bad_request(f"{param} is in GBNF or EBNF (::=), which is not supported: give it in Lark.", param)
        yield AnswerForm(param, lambda: Rule.grammar(grammar))


def _choice(param: str, texts: list[str] | None) -> Iterator[AnswerForm]:
    if texts is not None:
        yield AnswerForm(param, lambda: Rule.choice(texts))
