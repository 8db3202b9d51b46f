"""Answers of a running server for random JSON schemas, from random logits: every one is valid."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import jsonschema
import pytest
from chat_client import CHAT, USER, Streamed
from chat_models import chat_vocabulary, writing_pipeline
from fake_model import assert_idle
from json_schemas import SchemaMaker
from serving import LiveServer, events_of, serving
from structured import PUBLISHED_FOLDER

NUM_SCHEMAS, NUM_AT_ONCE = 200, 16
THINKS = {"qwen3": "<think>", "gemma4": "<|channel>"}


def body_of(seed: int, family: str, is_published: bool) -> dict[str, Any]:
    """Every second one thinks; a model of random logits has to be led to it."""
    schema = SchemaMaker(seed).make()
    is_thinking = seed // 2 % 2 == 0
    body: dict[str, Any] = {
        "messages": USER,
        "temperature": 1,
        "seed": seed,
        "max_tokens": 3000,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        "chat_template_kwargs": {"enable_thinking": is_thinking},
    }
    if family in THINKS:  # where it is off this must change nothing
        body["logit_bias"] = {str(chat_vocabulary(family, is_published).ids(THINKS[family])[0]): 100}
    return body


async def message_of(client: httpx.AsyncClient, body: dict[str, Any], is_streamed: bool) -> dict[str, Any]:
    """The message of an answer that has ended by itself."""
    if not is_streamed:
        response = await client.post(CHAT, json=body)
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        assert choice["finish_reason"] == "stop"
        return dict(choice["message"])
    streamed = Streamed()
    async with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        lines = [line async for line in response.aiter_lines()]
    for event in events_of(iter(lines)):
        streamed.add(event["choices"][0])
    assert streamed.finish_reason == "stop"
    return streamed.message


def check(message: dict[str, Any], body: dict[str, Any]) -> bool:
    """Whether a message, which has to be valid, has a thought."""
    schema = body["response_format"]["json_schema"]["schema"]
    kind = jsonschema.validators.validator_for(schema)
    kind(schema, format_checker=kind.FORMAT_CHECKER).validate(json.loads(message["content"]))
    has_thought = "reasoning" in message
    assert not has_thought or body["chat_template_kwargs"]["enable_thinking"]
    return has_thought


async def ask_all(server: LiveServer, seeds: range, family: str, is_published: bool = False) -> None:
    places = asyncio.Semaphore(NUM_AT_ONCE)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:

        async def ask(seed: int) -> bool:
            body = body_of(seed, family, is_published)
            async with places:
                return check(await message_of(client, body, is_streamed=seed % 2 == 0), body)

        num_thoughts = sum(await asyncio.gather(*map(ask, seeds)))
    assert num_thoughts > len(seeds) / 4 if family in THINKS else num_thoughts == 0  # some are empty


@pytest.mark.parametrize(
    ("family", "first", "last"),
    [
        ("qwen3", 0, 8),
        pytest.param("qwen3", 8, 120, marks=pytest.mark.slow),
        pytest.param("gemma4", 120, 170, marks=pytest.mark.slow),
        pytest.param("llama3", 170, 185, marks=pytest.mark.slow),
        pytest.param("gemma3", 185, NUM_SCHEMAS, marks=pytest.mark.slow),
    ],
)
def test_every_answer_is_valid(family: str, first: int, last: int) -> None:
    """Half of them streamed, half of them with thinking before."""
    with serving(writing_pipeline(family)) as server:
        asyncio.run(ask_all(server, range(first, last), family))
    assert_idle(server.pipe)


@pytest.mark.slow
@pytest.mark.skipif(PUBLISHED_FOLDER is None, reason="PUBLISHED_TOKENIZERS names no folder with published tokenizers")
@pytest.mark.parametrize("family", ["qwen3", "gemma4", "llama3"])
def test_every_answer_is_valid_with_published_tokenizers(family: str) -> None:
    with serving(writing_pipeline(family, is_published=True)) as server:
        asyncio.run(ask_all(server, range(8), family, is_published=True))
    assert_idle(server.pipe)
