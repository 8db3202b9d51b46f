"""The answer of /v1/chat/completions: whole, or chunk by chunk."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.context import TextChunk
from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.serve.chat_fields import (
    AnswerMessage,
    AnswerToolCall,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatRequest,
    ToolCallDelta,
    ToolCallFunction,
    ToolCallFunctionDelta,
)
from pipelines.serve.decoding import Decoding
from pipelines.serve.fields import Usage
from pipelines.serve.generation import Generation, stop_reason
from pipelines.serve.log_probs import ChatLogProbs, chat_log_probs
from pipelines.serve.sse import event
from pipelines.serve.token_texts import TokenTexts
from pipelines.text.parsers import Content, Delta, OutputParser, ParsedAnswer, Reasoning, ToolCall


@dataclass
class _Choice:
    """State of one choice so far."""

    parser: OutputParser
    answer: ParsedAnswer = field(default_factory=ParsedAnswer)
    logprobs: list[TokenLogProbs] = field(default_factory=list)
    finish_reason: str | None = None
    has_begun: bool = False
    has_tool_calls: bool = False

    def take(self, chunk: TextChunk) -> list[Delta]:
        """Takes the chunk's text apart."""
        deltas = self.parser.push(chunk.text)
        if chunk.finish_reason is not None:
            deltas += self.parser.finish()
        self.has_begun = True
        self.has_tool_calls |= any(isinstance(delta, ToolCall) for delta in deltas)
        is_call = chunk.finish_reason == "stop" and self.has_tool_calls
        self.finish_reason = "tool_calls" if is_call else chunk.finish_reason
        return deltas


class ChatAnswer:
    """The answer to one request; either `complete` or `events` is called, once."""

    def __init__(
        self, body: ChatRequest, model: str, decoding: Decoding, generation: Generation, texts: TokenTexts
    ) -> None:
        self.generation = generation
        self._body, self._texts = body, texts
        self._choices = [_Choice(decoding.new_parser(context)) for context in generation.contexts]
        self._num_output_tokens = 0
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    async def complete(self) -> ChatCompletion:
        """Waits for the whole answer.

        Raises:
            ApiError: A choice failed.
        """
        async for index, chunk in self.generation:
            choice = self._choices[index]
            self._num_output_tokens += len(chunk.tokens)
            choice.answer.add(choice.take(chunk))
            choice.logprobs += chunk.logprobs
        choices = [self._whole(index) for index in range(len(self._choices))]
        return ChatCompletion(object="chat.completion", **self._head, choices=choices, usage=self._usage)

    def _whole(self, index: int) -> ChatChoice:
        choice = self._choices[index]
        assert choice.finish_reason is not None
        return ChatChoice(
            index=index,
            message=_message(choice.answer),
            logprobs=self._log_probs(choice.logprobs),
            finish_reason=choice.finish_reason,
            stop_reason=stop_reason(self.generation.contexts[index]),
        )

    async def events(self) -> AsyncGenerator[str, None]:
        """Yields the events of a stream, up to the one with the usage.

        Raises:
            ApiError: A choice failed.
        """
        async for index, chunk in self.generation:
            choice = self._choices[index]
            self._num_output_tokens += len(chunk.tokens)
            if not choice.has_begun:
                yield self._event(index, ChatDelta(role="assistant", content=""))
            deltas = choice.take(chunk)
            if deltas or chunk.logprobs or choice.finish_reason or self._body.repeats_usage:
                yield self._event(index, _delta(deltas), chunk, choice.finish_reason)
        if self._body.includes_usage:
            usage_chunk = ChatChunk(object="chat.completion.chunk", **self._head, choices=[], usage=self._usage)
            yield event(usage_chunk)

    def _event(
        self, index: int, delta: ChatDelta, chunk: TextChunk | None = None, finish_reason: str | None = None
    ) -> str:
        logprobs = self._log_probs(chunk.logprobs if chunk is not None else ())
        choice = ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        if finish_reason is not None:
            choice.stop_reason = stop_reason(self.generation.contexts[index])
        answer = ChatChunk(object="chat.completion.chunk", **self._head, choices=[choice])
        if self._body.includes_usage or self._body.repeats_usage:
            answer.usage = self._usage if self._body.repeats_usage else None
        return event(answer)

    def _log_probs(self, entries: tuple[TokenLogProbs, ...] | list[TokenLogProbs]) -> ChatLogProbs | None:
        return chat_log_probs(entries, self._texts) if self._body.logprobs else None

    @property
    def _usage(self) -> Usage:
        contexts = self.generation.contexts
        return Usage.of(contexts, self._body.num_choices, self._num_output_tokens)


def _delta(deltas: Sequence[Delta]) -> ChatDelta:
    """Delta of a chunk, with the keys that add something."""
    given: dict[str, Any] = {}
    content = "".join(delta.text for delta in deltas if isinstance(delta, Content))
    reasoning = "".join(delta.text for delta in deltas if isinstance(delta, Reasoning))
    calls = [_tool_call_delta(delta) for delta in deltas if isinstance(delta, ToolCall)]
    if reasoning:
        given |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if content:
        given["content"] = content
    if calls:
        given["tool_calls"] = calls
    return ChatDelta(**given)


def _tool_call_delta(call: ToolCall) -> ToolCallDelta:
    """A piece of a call: its id, type and name come once."""
    if call.id is None or call.name is None:
        return ToolCallDelta(index=call.index, function=ToolCallFunctionDelta(arguments=call.arguments))
    function = ToolCallFunctionDelta(name=call.name, arguments=call.arguments)
    return ToolCallDelta(index=call.index, id=call.id, type="function", function=function)


def _message(answer: ParsedAnswer) -> AnswerMessage:
    """The whole message; its content is null where there are only calls."""
    given: dict[str, Any] = {"content": answer.content if answer.content or not answer.tool_calls else None}
    if answer.reasoning:
        given |= {"reasoning": answer.reasoning, "reasoning_content": answer.reasoning}
    if answer.tool_calls:
        given["tool_calls"] = [
            AnswerToolCall(
                id=call.id, type="function", function=ToolCallFunction(name=call.name, arguments=call.arguments)
            )
            for call in answer.tool_calls
        ]
    return AnswerMessage(role="assistant", refusal=None, **given)
