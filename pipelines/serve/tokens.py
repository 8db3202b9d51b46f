"""POST /tokenize and /detokenize, GET /tokenizer_info, in the shapes of vLLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field

from pipelines.serve.chat.fields import MAX_MESSAGES, ChatRequest, Message
from pipelines.serve.chat.turn import chat_encoder
from pipelines.serve.decoding import decoding_of
from pipelines.serve.errors import bad_request, naming_fields
from pipelines.serve.fields import ApiModel, Count, Flag
from pipelines.serve.json_route import JsonRoute
from pipelines.serve.models import answered_model
from pipelines.serve.service import Service
from pipelines.serve.wire import JsonResponse
from pipelines.text.prompts import PromptEncoder

MAX_TEXT_BYTES = 2**20


class TokenizeRequest(ChatRequest):
    """A text, or a conversation in the fields of a chat completion. add_special_tokens: around a text."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(default_factory=list, max_length=MAX_MESSAGES, fail_fast=True)]
    add_special_tokens: Flag = None
    return_token_strs: Flag = None


class TokenizeResponse(ApiModel):
    """The token ids. max_model_len: tokens of prompt and output. token_strs: the texts of the tokens, if asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(ApiModel):
    """Token ids."""

    model: str | None = None
    tokens: Annotated[list[Count], Field(max_length=MAX_TEXT_BYTES, fail_fast=True)]


class DetokenizeResponse(ApiModel):
    """The text of the tokens."""

    prompt: str


class TokenizerInfo(ApiModel):
    """The tokenizer, in the names of tokenizer_config.json. model_max_length: tokens of prompt and output.

    Special tokens are spelled as text, and more of them may be there: all that have names.
    """

    model_config = ConfigDict(extra="allow")

    tokenizer_class: str
    model_max_length: int
    chat_template: str | None
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None


def tokens_router(service: Service) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["tokens"], route_class=JsonRoute)

    @router.post("/tokenize", response_model=TokenizeResponse)
    async def tokenize(body: TokenizeRequest) -> Response:
        """Converts a text or a conversation to token ids."""
        service.check_ready()
        answered_model(service, body.model)
        with naming_fields(TokenizeRequest.model_fields):
            tokens = await service.off_loop(await _encoder(service, body))
        strings = [service.token_texts(token) for token in tokens] if body.return_token_strs else None
        max_length = service.pipeline.prompts.max_length
        answer = TokenizeResponse(count=len(tokens), max_model_len=max_length, tokens=tokens, token_strs=strings)
        return JsonResponse(answer)

    @router.post("/detokenize", response_model=DetokenizeResponse)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """Converts token ids to text, control tokens included."""
        service.check_ready()
        answered_model(service, body.model)
        prompts = service.pipeline.prompts
        if max(body.tokens, default=0) >= prompts.vocab_size:
            raise bad_request(f"A token id is outside the vocabulary of {prompts.vocab_size}.", "tokens")
        text = await service.off_loop(lambda: prompts.tokenizer.decode(body.tokens, skip_special_tokens=False))
        return JsonResponse(DetokenizeResponse(prompt=text))

    @router.get("/tokenizer_info", response_model=TokenizerInfo)
    async def tokenizer_info() -> Response:
        """Describes the tokenizer, for clients that render chats and look for its tokens themselves."""
        service.check_ready()
        return JsonResponse(_tokenizer_info(service.pipeline.prompts))

    return router


def _tokenizer_info(prompts: PromptEncoder) -> TokenizerInfo:
    tokenizer = prompts.tokenizer
    frames: dict[str, Any] = dict.fromkeys(("bos_token", "eos_token", "pad_token"))  # null where there is none
    return TokenizerInfo(
        tokenizer_class=tokenizer.class_name,
        model_max_length=prompts.max_length,
        chat_template=tokenizer.chat_template or None,
        **frames | tokenizer.special_tokens,
    )


async def _encoder(service: Service, body: TokenizeRequest) -> Callable[[], list[int]]:
    """The call, for the worker thread, that makes the token ids."""
    if body.prompt is None:
        if not body.messages:
            raise bad_request("Give a prompt or messages.", "prompt")
        encode = await chat_encoder(service, body, decoding_of(service, body))
        return lambda: encode().tokens
    text, add_special_tokens = body.prompt, body.add_special_tokens is not False
    if len(text.encode(errors="replace")) > MAX_TEXT_BYTES:
        raise bad_request(f"The text is larger than {MAX_TEXT_BYTES} bytes.", "prompt")
    tokenizer = service.pipeline.tokenizer
    return lambda: tokenizer.encode(text, add_special_tokens=add_special_tokens)
