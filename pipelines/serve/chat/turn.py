"""One turn of a conversation: the choices of the model's next message, taken apart as they are generated.

Every chat API converts its request to a ChatRequest, starts a turn, and writes what it yields in its own shape.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from pipelines.context import TextChunk, TextContext
from pipelines.sampling.params import SamplingParams
from pipelines.serve.chat.fields import ChatRequest
from pipelines.serve.chat.messages import template_kwargs, template_messages
from pipelines.serve.chat.tools import with_tools
from pipelines.serve.decoding import Decoding, decoding_of, new_contexts
from pipelines.serve.errors import bad_request
from pipelines.serve.fields import Usage
from pipelines.serve.generation import Generation, stop_reason
from pipelines.serve.service import Service
from pipelines.text.parsers import Delta, OutputParser
from pipelines.text.prompts import EncodedPrompt


@dataclass(frozen=True)
class TurnStep:
    """Addition of one chunk to one choice.

    index: of the choice. deltas: what the chunk's text says. finish_reason: None until the choice ends; `tool_calls`
    where it ends by itself and its calls are complete. is_first: whether it is the choice's first.
    """

    index: int
    chunk: TextChunk
    deltas: Sequence[Delta]
    finish_reason: str | None
    is_first: bool


@dataclass
class _Choice:
    """State of one choice so far."""

    parser: OutputParser
    has_begun: bool = False

    def take(self, index: int, chunk: TextChunk) -> TurnStep:
        """Takes the chunk's text apart."""
        deltas = self.parser.push(chunk.text)
        if chunk.finish_reason is not None:
            deltas += self.parser.finish()
        reason = "stop" if self.parser.is_done else chunk.finish_reason
        is_call = reason == "stop" and self.parser.has_whole_calls
        is_first, self.has_begun = not self.has_begun, True
        return TurnStep(index, chunk, deltas, "tool_calls" if is_call else reason, is_first)


class ChatTurn:
    """The choices of one request, as they are generated; it is iterated once.

    body: the request. decoding: of its choices. generation: the chunks.
    """

    def __init__(self, body: ChatRequest, decoding: Decoding, generation: Generation) -> None:
        self.body, self.generation = body, generation
        self._choices = [_Choice(decoding.new_parser(context)) for context in generation.contexts]
        self._num_output_tokens = 0

    async def __aiter__(self) -> AsyncIterator[TurnStep]:
        """Yields the steps until all choices have ended.

        Raises:
            ApiError: A choice failed.
        """
        async for index, chunk in self.generation:
            self._num_output_tokens += len(chunk.tokens)
            step = self._choices[index].take(index, chunk)
            if step.finish_reason is not None and chunk.finish_reason is None:
                self.generation.end(index)
            yield step

    def stop_reason(self, index: int) -> str | int | None:
        """The stop string or stop token that ended a choice; None where something else did."""
        return stop_reason(self.generation.contexts[index])

    @property
    def usage(self) -> Usage:
        """Tokens of the turn so far."""
        return Usage.of(self.generation.contexts, self.body.num_choices, self._num_output_tokens)


async def start_turn(service: Service, body: ChatRequest) -> ChatTurn:
    """Checks a request and queues its choices.

    Raises:
        ApiError: It can't be served.
        InputError: Its prompt or its parameters can't be.
    """
    decoding = decoding_of(service, body)
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
    params = chat_params(body)
    generation = await service.submit(lambda: _contexts(service, body, decoding, params), body.num_choices)
    return ChatTurn(body, decoding, generation)


def chat_params(body: ChatRequest) -> list[SamplingParams]:
    """The sampling parameters of each choice."""
    logprobs = body.top_logprobs or 0 if body.logprobs else None
    given = {"max_new_tokens": body.max_new_tokens, "logprobs": logprobs}
    return [body.params(choice, **given) for choice in range(body.num_choices)]


async def _contexts(
    service: Service, body: ChatRequest, decoding: Decoding, params: Sequence[SamplingParams]
) -> list[TextContext]:
    prompt = await service.off_loop(await chat_encoder(service, body, decoding))
    return await new_contexts(service, decoding, [prompt], params)


async def chat_encoder(service: Service, body: ChatRequest, decoding: Decoding) -> Callable[[], EncodedPrompt]:
    """Reads a conversation's images; returns the call, for the worker thread, that renders and encodes it.

    Raises:
        ApiError: The messages can't be used.
        InputError: An image can't be.
    """
    prompts = service.pipeline.prompts
    template = prompts.tokenizer.chat_template
    messages, references = template_messages(body.messages, template)
    if references and prompts.load_image_processor is None:
        raise bad_request("The model takes text alone: leave the images out.", "messages")
    kwargs = template_kwargs(body, template)
    images = await service.images.load(references)

    def encode() -> EncodedPrompt:
        with_them, tools = with_tools(messages, decoding.tools, template)
        return prompts.encode_chat(with_them, images, **kwargs, **tools)

    return encode
