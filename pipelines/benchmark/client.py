"""The HTTP client: one request of a benchmark, its stream, and the times at which parts of it arrive."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from pipelines.benchmark.chunks import message_of, take_event
from pipelines.benchmark.events import EventParser
from pipelines.benchmark.outcome import Clock, Outcome, RequestError, RequestPlan
from pipelines.benchmark.settings import BenchmarkSettings
from pipelines.errors import InputError

_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_MAX_ERROR_BYTES = 2**16
_REMEDIES = {401: "give the server's --api-key", 503: "wait until the server is ready"}


class ServerClient:
    """Talks to one server. model: the name that requests carry, which `find_model` sets."""

    def __init__(self, settings: BenchmarkSettings) -> None:
        self.model = settings.model or ""
        self._settings = settings
        headers = {"Accept-Encoding": "identity", "User-Agent": "graph-pipelines"}
        if settings.api_key is not None:
            headers["Authorization"] = f"Bearer {settings.api_key}"
        # Requests wait for arrivals and for --concurrency, never for a connection of the pool.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx.AsyncClient(base_url=settings.root_url, headers=headers, timeout=None, limits=limits)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def find_model(self) -> None:
        """Asks the server for its models, and takes the first if the settings name none.

        Raises:
            InputError: The server can't be reached, or names no model where one is asked for.
        """
        try:
            async with asyncio.timeout(min(self._settings.timeout_s, 60.0)):
                response = await self._http.get("/v1/models")
        except (httpx.HTTPError, TimeoutError) as error:
            raise InputError(f"can't reach {self._settings.root_url} ({_reason(error)}): check --url") from None
        if self.model:
            return
        self.model = _first_model(response)

    async def count_by_tokenize(self, text: str) -> int | None:
        """The number of tokens of a prompt with this text, by POST /tokenize; None: the server has no such route."""
        # vLLM and this package's server read `prompt` or `messages`, llama.cpp's reads `content`.
        texts = {"prompt": text, "content": text}
        body = self._prompt_field(text) if self._settings.endpoint == "chat" else texts
        answer = await self._post_json("/tokenize", {"model": self.model, "add_special": True, **body})
        tokens = answer.get("tokens")
        return len(tokens) if isinstance(tokens, list) and tokens else None

    async def count_by_usage(self, text: str) -> int | None:
        """The same, by the usage of a request for one token; None: the server reports none."""
        body = self._body(RequestPlan(text, 1))
        body = {name: body[name] for name in body.keys() - {"stream", "stream_options"}}
        usage = (await self._post_json(_PATHS[self._settings.endpoint], body)).get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        return count if isinstance(count, int) and count > 0 else None

    async def _post_json(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, if it is a JSON object; an empty one for all else."""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                response = await self._http.post(path, json=body)
            answer = response.json() if response.status_code == 200 else {}
        except (httpx.HTTPError, TimeoutError, ValueError):
            return {}
        return answer if isinstance(answer, dict) else {}

    async def send(self, plan: RequestPlan, clock: Clock) -> Outcome:
        """Sends a request and reads its stream to the end. A failure is part of the outcome."""
        outcome = Outcome(plan, sent_s=clock())
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._stream(plan, clock, outcome)
            _check_complete(outcome)
        except RequestError as error:
            outcome.error = error
        except TimeoutError:
            outcome.error = RequestError("timeout", f"no complete answer within {self._settings.timeout_s:g} s")
        except (httpx.HTTPError, httpx.StreamError) as error:
            kind = "cut stream" if outcome.chunk_times_s else "connection"
            outcome.error = RequestError(kind, _reason(error))
        if outcome.error is not None:
            outcome.end_s = clock()
        return outcome

    async def _stream(self, plan: RequestPlan, clock: Clock, outcome: Outcome) -> None:
        parser = EventParser()
        path = _PATHS[self._settings.endpoint]
        async with self._http.stream("POST", path, json=self._body(plan)) as response:
            if response.status_code != 200:
                raise RequestError(f"HTTP {response.status_code}", await _error_message(response))
            content_type = response.headers.get("content-type", "none")
            if "text/event-stream" not in content_type:
                raise RequestError("no stream", f"the answer is no event stream: its content type is {content_type}")
            async for data in response.aiter_bytes():
                now_s = clock()
                for event in parser.feed(data):
                    take_event(event, now_s, outcome)
            for event in parser.close():
                take_event(event, clock(), outcome)

    def _body(self, plan: RequestPlan) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            **self._prompt_field(plan.prompt),
            "max_tokens": plan.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._settings.endpoint == "chat":
            body["max_completion_tokens"] = plan.max_tokens  # some servers know only this name, some only the other
        if self._settings.ignore_eos:
            body["ignore_eos"] = True
        body |= self._settings.extra_body
        return {name: value for name, value in body.items() if value is not None}

    def _prompt_field(self, text: str) -> dict[str, Any]:
        if self._settings.endpoint == "chat":
            return {"messages": [{"role": "user", "content": text}]}
        return {"prompt": text}


def _check_complete(outcome: Outcome) -> None:
    if not outcome.has_ended:
        raise RequestError("cut stream", "the stream ended without a finish_reason and without [DONE]")
    if not outcome.chunk_times_s:
        raise RequestError("empty answer", "the stream had no text")


async def _error_message(response: httpx.Response) -> str:
    body = b""
    async for data in response.aiter_bytes():
        body += data
        if len(body) > _MAX_ERROR_BYTES:
            break
    text = body.decode(errors="replace")
    try:
        return message_of(json.loads(text)) or text
    except ValueError:
        return text


def _first_model(response: httpx.Response) -> str:
    remedy = _REMEDIES.get(response.status_code, "check --url, or give --model")
    answer = f"HTTP {response.status_code}"
    if response.status_code == 200:
        try:
            return str(response.json()["data"][0]["id"])
        except IndexError:
            answer = "an empty list"
        except (ValueError, LookupError, TypeError):
            answer = "no list of models"
    raise InputError(f"{response.url} answers {answer}: {remedy}")


def _reason(error: BaseException) -> str:
    return str(error).rstrip(".") or type(error).__name__
