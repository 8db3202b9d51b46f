"""The one place that decides how an answer is constrained, and how its text becomes content, reasoning and calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.context import TextContext
from pipelines.errors import naming_prompt
from pipelines.sampling.constraints import (
    Constraint,
    ConstraintCompiler,
    ConstraintError,
    Thinking,
    tool_call_constraint,
)
from pipelines.sampling.params import SamplingParams
from pipelines.serve.answer_start import AnswerStart
from pipelines.serve.chat.fields import ChatRequest
from pipelines.serve.chat.messages import begun_answer
from pipelines.serve.chat.tools import ToolUse, tool_use
from pipelines.serve.constraints import naming
from pipelines.serve.errors import bad_request
from pipelines.serve.fields import SamplingFields
from pipelines.serve.service import Service
from pipelines.serve.structured import AnswerForm, answer_form
from pipelines.text.parsers import AnswerFormat, OutputParser
from pipelines.text.prompts import EncodedPrompt

REFUSED = ("functions", "function_call")
"""Fields of older clients that tools replace; what is not honoured is refused."""

Constrain = Callable[[ConstraintCompiler, Sequence[int]], Constraint | None]


def _plain_parser(context: TextContext) -> OutputParser:
    return AnswerFormat().parser()


@dataclass(frozen=True)
class Decoding:
    """Decoding of the answer to one request.

    tools: those that it may call; None: none. constrain: compiles what the answer is held to, for the tokens of the
    prompt, in a thread for it; None: the answer is free. new_parser: makes the parser of one choice.
    """

    tools: ToolUse | None = None
    constrain: Constrain | None = None
    new_parser: Callable[[TextContext], OutputParser] = _plain_parser


def decoding_of(service: Service, request: SamplingFields) -> Decoding:
    """Decides how the answer is decoded; what takes time belongs into `constrain`.

    Raises:
        ApiError: The request asks for something that is not supported, or the server is not ready.
    """
    form = answer_form(request)
    if not isinstance(request, ChatRequest):
        return Decoding(constrain=None if form is None else _text_constraint(form))
    for name in REFUSED:
        if (request.model_extra or {}).get(name):
            raise bad_request(f"{name} is not supported: give tools and tool_choice.", name)
    use, format = tool_use(request), service.answer_format
    if use is not None and format.tools is None:
        raise bad_request("tools are not supported with this model: no format of its calls is known.", "tools")
    reasoning = None if format.reasoning is None else format.reasoning.syntax
    start = AnswerStart(reasoning, service.pipeline.tokenizer, begun_answer(request))
    is_free = form is None and (use is None or not use.needs_grammar)
    constrain = None if is_free else ChatConstraint(form, use, format, start)
    return Decoding(use, constrain, _parser_maker(format, use, start))


def _text_constraint(form: AnswerForm) -> Constrain:
    """The constraint of an answer that is text alone."""

    def constrain(compiler: ConstraintCompiler, prompt: Sequence[int]) -> Constraint:
        with naming(form.param):
            return compiler.compile(form.rule())

    return constrain


@dataclass(frozen=True)
class ChatConstraint:
    """The constraint of a message: of its form, of its calls, or of both, where it has the one or the others."""

    form: AnswerForm | None
    tools: ToolUse | None
    format: AnswerFormat
    start: AnswerStart

    def __call__(self, compiler: ConstraintCompiler, prompt: Sequence[int]) -> Constraint | None:
        """Compiles it for the tokens of a prompt."""
        thinking = self.start.thinking(prompt)
        constraint = self._compiled(compiler, thinking)
        if constraint is not None and thinking is None and self.start.begun_content:
            self._accept_begun(constraint)
        return constraint

    def _compiled(self, compiler: ConstraintCompiler, thinking: Thinking | None) -> Constraint | None:
        rule = constraint = None
        if self.form is not None:
            with naming(self.form.param):
                rule = self.form.rule()
                constraint = compiler.compile(rule, thinking)
        if self.tools is None:
            return constraint
        assert self.format.tools is not None
        use, functions = self.tools, [{"function": function} for function in self.tools.functions]
        with naming("tools"):
            family = self.format.tools.name
            return tool_call_constraint(compiler, family, functions, use.choice, use.is_parallel, thinking, rule)

    def _accept_begun(self, constraint: Constraint) -> None:
        """Holds the message that is continued to the constraint, from its first token on."""
        try:
            for token in self.start.tokenizer.encode(self.start.begun_content, add_special_tokens=False):
                constraint.accept(token)
        except ConstraintError:
            asked = "tools" if self.form is None else self.form.param
            message = f"messages: the last one can't be continued, since it does not begin as {asked} asks for."
            raise bad_request(message, "messages") from None


def _parser_maker(
    format: AnswerFormat, use: ToolUse | None, start: AnswerStart
) -> Callable[[TextContext], OutputParser]:
    """Makes parsers that split reasoning and calls off, in the format of the model."""
    names = () if use is None else use.names
    max_calls = None if use is None or use.is_parallel else 1

    def new_parser(context: TextContext) -> OutputParser:
        is_open = start.is_in_thinking(context.tokens[: context.num_prompt_tokens])
        return format.parser(names, is_open, max_calls=max_calls)

    return new_parser


async def new_contexts(
    service: Service, decoding: Decoding, prompts: Sequence[EncodedPrompt], params: Sequence[SamplingParams]
) -> list[TextContext]:
    """Makes the contexts of a request off the event loop: for each prompt its choices, each with its constraint.

    Raises:
        ApiError: The constraint can't be compiled.
        InputError: A prompt or its parameters can't be used.
    """
    constraint, constrain = None, decoding.constrain
    if constrain is not None:
        constraint = await service.constraints.compile(lambda compiler: constrain(compiler, prompts[0].tokens))
    requests = service.pipeline.requests

    def make() -> list[TextContext]:
        contexts = []
        for number, prompt in enumerate(prompts, 1):
            with naming_prompt(number, len(prompts)):
                contexts += [requests.generation(prompt, each, constraint and constraint.copy()) for each in params]
        return contexts

    return await service.off_loop(make)
