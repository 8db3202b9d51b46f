"""The packages of openai and anthropic as clients of a server in tests, with strict validation of what they get."""

from __future__ import annotations

import anthropic
import openai
from serving import LiveServer


def openai_of(server: LiveServer, api_key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=0, _strict_response_validation=True)


def anthropic_of(server: LiveServer, api_key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=api_key, max_retries=0, _strict_response_validation=True)
