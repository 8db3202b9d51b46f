"""The one place that decides how an answer is constrained, and how its text becomes content, reasoning and calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.context import TextContext
from pipelines.sampling.params import SamplingParams
from pipelines.serve.chat.fields import ChatRequest
from pipelines.serve.errors import bad_request
from pipelines.serve.fields import SamplingFields
from pipelines.serve.service import Service
from pipelines.text.parsers import AnswerFormat, OutputParser
from pipelines.text.prompts import EncodedPrompt
from pipelines.text_generation import TextGenerationPipeline

REFUSED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "functions")
"""Fields by which clients of other servers constrain an answer; what is not honoured is refused."""

_NUM_END_TOKENS = 16
"""Tokens of a prompt's end, in which an opener of the thinking is looked for."""


def _plain_context(pipeline: TextGenerationPipeline, prompt: EncodedPrompt, params: SamplingParams) -> TextContext:
    return pipeline.requests.generation(prompt, params)


def _plain_parser(context: TextContext) -> OutputParser:
    return AnswerFormat().parser()


@dataclass(frozen=True)
class Decoding:
    """Decoding of the answer to one request.

    template_kwargs: variables of the chat template, such as `tools`. new_context: makes the context of one choice, with
    its constraint; it is called in the worker thread, and may raise InputError. new_parser: makes the parser of one
    choice, whose prompt may have begun the reasoning.
    """

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    new_context: Callable[[TextGenerationPipeline, EncodedPrompt, SamplingParams], TextContext] = _plain_context
    new_parser: Callable[[TextContext], OutputParser] = _plain_parser


def decoding_of(service: Service, request: SamplingFields) -> Decoding:
    """Decides how the answer is decoded; what takes time belongs into `new_context`.

    Raises:
        ApiError: The request asks for something that is not supported, or the server is not ready.
    """
    for name in REFUSED:
        if (request.model_extra or {}).get(name):
            raise bad_request(f"{name} is not supported.", name)
    if request.response_format is not None and request.response_format.type != "text":
        raise bad_request("response_format is not supported yet, but for the type 'text'.", "response_format")
    if not isinstance(request, ChatRequest):
        return Decoding()
    if request.tools and request.tool_choice != "none":
        raise bad_request("tools are not supported yet: leave them out, or set tool_choice to 'none'.", "tools")
    if request.tool_choice not in (None, "none", "auto"):
        raise bad_request("tool_choice asks for a tool, but there are no tools.", "tool_choice")
    return Decoding(new_parser=_parser_maker(service))


def _parser_maker(service: Service) -> Callable[[TextContext], OutputParser]:
    """Makes parsers that split the reasoning off, in the format of the model."""
    answer_format, tokenizer = service.answer_format, service.pipeline.tokenizer

    def new_parser(context: TextContext) -> OutputParser:
        if answer_format.reasoning is None:
            return answer_format.parser()
        end = context.tokens[: context.num_prompt_tokens][-_NUM_END_TOKENS:]
        is_open = answer_format.reasoning.syntax.is_open(tokenizer.decode(end, skip_special_tokens=False))
        return answer_format.parser(is_thinking_open=is_open)

    return new_parser
