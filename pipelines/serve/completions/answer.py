"""The answer of /v1/completions: whole, or chunk by chunk."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from pipelines.context import TextChunk
from pipelines.engine.consumers import NextToken
from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.serve.completions.fields import Completion, CompletionChoice, CompletionRequest
from pipelines.serve.fields import Usage
from pipelines.serve.generation import Generation, stop_reason
from pipelines.serve.log_probs import TextLogProbs, TextLogProbsBuilder
from pipelines.serve.sse import event
from pipelines.serve.token_texts import TokenTexts


class CompletionAnswer:
    """The answer to one request; either `complete` or `events` is called, once.

    echoes: the text of each prompt, empty where it is not echoed.
    """

    def __init__(
        self, body: CompletionRequest, model: str, generation: Generation, echoes: Sequence[str], texts: TokenTexts
    ) -> None:
        self.generation, self.close = generation, generation.close
        self._body, self._echoes = body, echoes
        skip = body.skip_special_tokens is not False
        self._builders = [TextLogProbsBuilder(texts, skip) for _ in generation.contexts]
        self._num_output_tokens = 0
        self._head: dict[str, Any] = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    async def complete(self) -> Completion:
        """Waits for the whole answer.

        Raises:
            ApiError: A sequence failed.
        """
        chunks: list[list[TextChunk]] = [[] for _ in self.generation.contexts]
        async for index, chunk in self.generation:
            chunks[index].append(self._told(chunk))
        choices = [self._whole(index, own) for index, own in enumerate(chunks)]
        return Completion(**self._head, choices=choices, usage=self._usage)

    def _told(self, chunk: TextChunk) -> TextChunk:
        """The chunk, without its token where no token was asked for."""
        if self._body.max_new_tokens == 0:
            return TextChunk("", finish_reason="length")
        self._num_output_tokens += len(chunk.tokens)
        return chunk

    def _whole(self, index: int, chunks: Sequence[TextChunk]) -> CompletionChoice:
        entries = [entry for chunk in chunks for entry in chunk.logprobs]
        return CompletionChoice(
            index=index,
            text=self._echo(index) + "".join(chunk.text for chunk in chunks),
            logprobs=self._log_probs(index, entries, is_first=True),
            finish_reason=chunks[-1].finish_reason,
            stop_reason=stop_reason(self.generation.contexts[index]),
        )

    async def events(self) -> AsyncGenerator[str, None]:
        """Yields the events of a stream, up to the one with the usage.

        Raises:
            ApiError: A sequence failed.
        """
        begun: set[int] = set()
        async for index, chunk in self.generation:
            chunk, is_first = self._told(chunk), index not in begun
            begun.add(index)
            text = (self._echo(index) if is_first else "") + chunk.text
            if text or chunk.logprobs or chunk.finish_reason or self._body.repeats_usage or is_first:
                logprobs = self._log_probs(index, chunk.logprobs, is_first)
                yield self._event(index, text, logprobs, chunk.finish_reason)
        if self._body.includes_usage:
            yield event(Completion(**self._head, choices=[], usage=self._usage))

    def _event(self, index: int, text: str, logprobs: TextLogProbs | None, finish_reason: str | None) -> str:
        choice = CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish_reason)
        if finish_reason is not None:
            choice.stop_reason = stop_reason(self.generation.contexts[index])
        answer = Completion(**self._head, choices=[choice])
        if self._body.includes_usage or self._body.repeats_usage:
            answer.usage = self._usage if self._body.repeats_usage else None
        return event(answer)

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._body.num_choices]

    def _log_probs(self, index: int, entries: Sequence[TokenLogProbs], is_first: bool) -> TextLogProbs | None:
        """The next log probabilities of a text, those of an echoed prompt in front of the first."""
        if self._body.logprobs is None:
            return None
        context, builder = self.generation.contexts[index], self._builders[index]
        consumer = context.consumer
        prompt = consumer.prompt_logprobs if isinstance(consumer, NextToken) else None
        if prompt is None or not is_first:
            return builder.build(entries)
        return builder.build([*prompt.entries, *entries], first_token=context.tokens[0])

    @property
    def _usage(self) -> Usage:
        contexts = self.generation.contexts
        return Usage.of(contexts, self._body.num_choices, self._num_output_tokens)
