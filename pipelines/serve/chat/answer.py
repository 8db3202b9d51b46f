"""The answer of /v1/chat/completions: whole, or chunk by chunk."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.serve.chat.fields import (
    AnswerMessage,
    AnswerToolCall,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ToolCallDelta,
    ToolCallFunction,
    ToolCallFunctionDelta,
)
from pipelines.serve.chat.turn import ChatTurn, TurnStep
from pipelines.serve.log_probs import ChatLogProbs, chat_log_probs
from pipelines.serve.sse import EventSource, event
from pipelines.serve.token_texts import TokenTexts
from pipelines.text.parsers import Content, Delta, ParsedAnswer, Reasoning, ToolCall


@dataclass
class _Choice:
    """One choice so far."""

    answer: ParsedAnswer = field(default_factory=ParsedAnswer)
    logprobs: list[TokenLogProbs] = field(default_factory=list)
    finish_reason: str | None = None


class ChatAnswer:
    """The answer to one request; either `complete` or `events` is called, once."""

    def __init__(self, turn: ChatTurn, model: str, texts: TokenTexts) -> None:
        self.close = turn.generation.close
        self._turn, self._body, self._texts = turn, turn.body, texts
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
        choices = [_Choice() for _ in range(self._body.num_choices)]
        async for step in self._turn:
            choice = choices[step.index]
            choice.answer.add(step.deltas)
            choice.logprobs += step.chunk.logprobs
            choice.finish_reason = step.finish_reason
        whole = [self._whole(index, choice) for index, choice in enumerate(choices)]
        return ChatCompletion(object="chat.completion", **self._head, choices=whole, usage=self._turn.usage)

    def _whole(self, index: int, choice: _Choice) -> ChatChoice:
        assert choice.finish_reason is not None
        return ChatChoice(
            index=index,
            message=_message(choice.answer),
            logprobs=self._log_probs(choice.logprobs),
            finish_reason=choice.finish_reason,
            stop_reason=self._turn.stop_reason(index),
        )

    async def events(self) -> EventSource:
        """Yields the events of a stream, up to the one with the usage.

        Raises:
            ApiError: A choice failed.
        """
        async for step in self._turn:
            if step.is_first:
                yield self._event(step.index, ChatDelta(role="assistant", content=""))
            if step.deltas or step.chunk.logprobs or step.finish_reason or self._body.repeats_usage:
                yield self._event(step.index, _delta(step.deltas), step)
        if self._body.includes_usage:
            yield event(ChatChunk(object="chat.completion.chunk", **self._head, choices=[], usage=self._turn.usage))

    def _event(self, index: int, delta: ChatDelta, step: TurnStep | None = None) -> str:
        finish_reason = None if step is None else step.finish_reason
        logprobs = self._log_probs(() if step is None else step.chunk.logprobs)
        choice = ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        if finish_reason is not None:
            choice.stop_reason = self._turn.stop_reason(index)
        answer = ChatChunk(object="chat.completion.chunk", **self._head, choices=[choice])
        if self._body.includes_usage or self._body.repeats_usage:
            answer.usage = self._turn.usage if self._body.repeats_usage else None
        return event(answer)

    def _log_probs(self, entries: Sequence[TokenLogProbs]) -> ChatLogProbs | None:
        return chat_log_probs(entries, self._texts) if self._body.logprobs else None


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
