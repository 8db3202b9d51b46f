"""The checks of soak.py: each drives a server over HTTP, prints what it measured, and returns whether it holds."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import click
import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

PATH = "/v1/completions"
BUDGET = 512
"""Tokens of a step on CPU, unless told otherwise."""
WORDS = (
    "def",
    "class",
    "return",
    "import",
    "self",
    "value",
    "for",
    "in",
    "range",
    "if",
    "else",
    "dict",
    "name",
    "print",
)


@dataclass
class Load:
    """What a check needs. process: of the server. num_requests, concurrency, num_cuts: the size of the load."""

    client: httpx.AsyncClient
    process: psutil.Process
    num_requests: int
    concurrency: int
    num_cuts: int

    async def text(self, **body: Any) -> str:
        """The streamed text of a completion."""
        return "".join([text async for text, _ in self.pieces(**body)])

    async def pieces(self, **body: Any) -> AsyncIterator[tuple[str, float]]:
        """The pieces of a stream, with the times at which they came."""
        # With usage, tokens that complete no character have chunks too.
        options = {"stream": True, "stream_options": {"continuous_usage_stats": True}}
        async with self.client.stream("POST", PATH, json={**options, **body}) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    yield event["choices"][0]["text"], time.monotonic()

    async def metrics(self) -> dict[str, float]:
        """Values of the metrics, summed over their labels."""
        values: dict[str, float] = {}
        for family in text_string_to_metric_families((await self.client.get("/metrics")).text):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0) + sample.value
        return values

    async def wait_until_idle(self) -> None:
        """Waits until no request runs or waits, and no page is used.

        Raises:
            TimeoutError: That takes longer than half a minute.
        """
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        async with asyncio.timeout(30):
            while values := await self.metrics():
                if not any(values[name] for name in names):
                    return
                await asyncio.sleep(0.05)


def random_body(seed: int) -> dict[str, Any]:
    """A request with a prompt, a length and sampling parameters of its own."""
    rng = random.Random(seed)
    prompt = " ".join(rng.choices(WORDS, k=rng.randrange(1, 120)))
    body = {"prompt": prompt, "max_tokens": rng.randrange(1, 48), "ignore_eos": True, "seed": seed}
    return body | ({"temperature": 0} if seed % 2 else {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1})


async def crowd(load: Load) -> bool:
    """Many streams at once; each text is the one that the same request gets alone, and memory does not grow."""
    bodies = [random_body(seed) for seed in range(load.num_requests)]
    gate, memory, texts = asyncio.Semaphore(load.concurrency), [], [""] * len(bodies)

    async def one(i: int) -> None:
        async with gate:
            texts[i] = await load.text(**bodies[i])
            memory.append(load.process.memory_info().rss / 2**20)

    begin = time.monotonic()
    await asyncio.gather(*map(one, range(len(bodies))))
    took = time.monotonic() - begin
    await load.wait_until_idle()
    num_wrong = 0
    for body, text in zip(bodies, texts, strict=True):
        num_wrong += text != await load.text(**body)
    quarter = len(memory) // 4
    middle, last = max(memory[quarter : 2 * quarter]), max(memory[-quarter:])
    click.echo(f"  {len(bodies)} requests, {load.concurrency} at once, in {took:.1f} s; {num_wrong} differ from alone")
    click.echo(f"  memory at most {middle:.0f} MiB in the second quarter, {last:.0f} MiB in the last")
    return num_wrong == 0 and last <= middle * 1.02


async def cuts(load: Load) -> bool:
    """Streams that clients cut at random points; nothing of them is left, and the next request is answered."""

    async def cut(seed: int) -> None:
        rng, num_left = random.Random(seed), random.Random(seed).randrange(20)
        try:
            async with asyncio.timeout(rng.random() * 3):
                async for _ in load.pieces(**random_body(seed) | {"max_tokens": 400, "n": 1 + seed % 2}):
                    num_left -= 1
                    if num_left < 0:
                        return
        except TimeoutError:
            return

    await asyncio.gather(*map(cut, range(load.num_cuts)))
    begin = time.monotonic()
    await load.text(prompt="def", max_tokens=2)
    click.echo(f"  {load.num_cuts} streams cut; the next request took {time.monotonic() - begin:.2f} s")
    is_quick = time.monotonic() - begin < 2  # the machine's speed matters: a request of its own takes less
    await load.wait_until_idle()
    return is_quick


async def stalls(load: Load) -> bool:
    """A long prompt beside four streams that decode, and a short prompt behind it."""
    length = (await load.client.post("/tokenize", json={"prompt": "x"})).json()["max_model_len"]
    num_long, rng = min(4000, length - 8), random.Random(0)
    step_ms = await _step_ms(load, rng)
    times: list[list[float]] = [[] for _ in range(4)]
    first: dict[str, float] = {}

    async def decode(i: int) -> None:
        async for _, at in load.pieces(prompt=[10 + i], max_tokens=min(200, length - 1), ignore_eos=True):
            times[i].append(at)

    async def prompt(name: str, tokens: list[int]) -> None:
        async for _, at in load.pieces(prompt=tokens, max_tokens=1):
            first[name] = at

    streams = [asyncio.create_task(decode(i)) for i in range(4)]
    while not all(len(each) > 4 for each in times):
        await asyncio.sleep(0.01)
    alone = _gaps(times)
    async with health_of(load) as health:
        begin = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(prompt("long", [rng.randrange(10, 1000) for _ in range(num_long)]))
            await asyncio.sleep(0.05)
            tasks.create_task(prompt("short", list(range(20, 30))))
        await asyncio.gather(*streams)
    beside = _gaps([[at for at in each if begin <= at <= first["long"]] for each in times])
    click.echo(f"  gaps of the streams: {_told(alone)}; beside a prompt of {num_long} tokens {_told(beside)}")
    click.echo(f"  first tokens: short {first['short'] - begin:.2f} s, long {first['long'] - begin:.2f} s")
    click.echo(f"  /health: {_told(health)}")
    click.echo(f"  a step of {BUDGET} tokens, alone: {step_ms:.0f} ms")
    is_bounded = max(beside) < 2 * step_ms + max(alone)
    return first["short"] < first["long"] and is_bounded and max(health) < 100


async def _step_ms(load: Load, rng: random.Random) -> float:
    """Time of a step that computes a whole budget, the median of three prompts of its size."""
    times = []
    for _ in range(3):
        begin = time.monotonic()
        await load.text(prompt=[rng.randrange(10, 1000) for _ in range(BUDGET)], max_tokens=1)
        times.append(1000 * (time.monotonic() - begin))
    return statistics.median(times)


def _gaps(times: list[list[float]]) -> list[float]:
    return [1000 * (after - before) for each in times for before, after in pairwise(each)]


def _told(times_ms: list[float]) -> str:
    return f"{statistics.median(times_ms):.0f} ms in the median, {max(times_ms):.0f} ms at most"


HEALTH = """
import sys, time, httpx
with httpx.Client(base_url=sys.argv[1]) as client:
    while True:
        begin = time.monotonic()
        assert client.get("/health").status_code == 200
        print(1000 * (time.monotonic() - begin), flush=True)
        time.sleep(0.01)
"""


@asynccontextmanager
async def health_of(load: Load) -> AsyncIterator[list[float]]:
    """Asks /health all the time, in a process of its own; the latencies in ms are there at the end of the block."""
    latencies: list[float] = []
    command = [sys.executable, "-c", HEALTH, str(load.client.base_url)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        yield latencies
        process.terminate()
        latencies += [float(line) for line in process.stdout if line.endswith("\n")]


async def turns(load: Load) -> bool:
    """The second turn of a chat computes its new tokens alone, and says what it would say without the cache."""
    rng = random.Random(1)
    messages = [{"role": "user", "content": " ".join(rng.choices(WORDS, k=160))}]
    body = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}
    first = (await load.client.post("/v1/chat/completions", json={"messages": messages, **body})).json()
    messages.append({"role": "assistant", "content": first["choices"][0]["message"]["content"]})
    messages.append({"role": "user", "content": "return value"})
    answers = [
        (await load.client.post("/v1/chat/completions", json={"messages": messages, **body, **more})).json()
        for more in ({}, {"cache_salt": "other"})
    ]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    usages = [answer["usage"] for answer in answers]
    reused, fresh = (usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    click.echo(f"  {reused} of {usages[0]['prompt_tokens']} prompt tokens reused, {fresh} with another salt")
    return texts[0] == texts[1] and reused >= first["usage"]["prompt_tokens"] // 128 * 128 > 0 and fresh == 0


async def templates(load: Load) -> bool:
    """/health answers while the templates of a hundred long chats are rendered."""
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "value " * 40} for i in range(1001)]
    body = json.dumps({"messages": messages, "max_tokens": 1}).encode()
    async with health_of(load) as health:
        chats = [load.client.post("/v1/chat/completions", content=body) for _ in range(100)]
        statuses = {chat.status_code for chat in await asyncio.gather(*chats)}
    click.echo(f"  {len(body)} bytes each, answered {statuses}; /health: {_told(health)}")
    return max(health) < 100


EXPLODING_SCHEMA = {"allOf": [{"anyOf": [{"required": [f"{key}{i}"]} for key in "ab"]} for i in range(16)]}
WRONG: dict[str, tuple[bytes, int]] = {
    "a megabyte of nesting": (b'{"prompt": ' + b"[" * 2**20, 400),
    "invalid UTF-8": (b'{"prompt": "\xff\xfe"}', 400),
    "n=10000": (b'{"prompt": "a", "n": 10000}', 400),
    "max_tokens=-1": (b'{"prompt": "a", "max_tokens": -1}', 400),
    "a schema that explodes": (
        json.dumps(
            {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": EXPLODING_SCHEMA}}}
        ).encode(),
        400,
    ),
    "a regex that explodes": (b'{"prompt": "a", "structured_outputs": {"regex": "(a?){5000}a{5000}"}}', 400),
    "33 MiB": (b'{"prompt": "' + b"a" * 33 * 2**20 + b'"}', 413),
}
"""Requests that must be refused at once: their body, and the status of the answer."""


async def hostile(load: Load) -> bool:
    """Requests that are made to hurt get their documented answers, while a stream goes on."""
    alone = await load.text(prompt="def read(", max_tokens=300, ignore_eos=True, temperature=0)
    stream = asyncio.create_task(load.text(prompt="def read(", max_tokens=300, ignore_eos=True, temperature=0))
    slow = asyncio.create_task(asyncio.to_thread(_read_slowly, load.client.base_url))
    is_good = True
    for name, (body, status) in WRONG.items():
        begin = time.monotonic()
        response = await load.client.post(PATH, content=body)
        is_good &= response.status_code == status
        click.echo(f"  {name}: {response.status_code} in {time.monotonic() - begin:.2f} s: {response.text[:110]}")
    is_same = await stream == alone
    click.echo(f"  the stream beside them: {'as alone' if is_same else 'DIFFERS'}")
    num_bytes = await slow
    click.echo(f"  a client that reads a byte a second got {num_bytes} bytes and left")
    await load.wait_until_idle()
    return is_good and is_same


def _read_slowly(url: httpx.URL) -> int:
    """Reads a stream byte by byte, one a second, for five seconds."""
    body = json.dumps({"prompt": "a", "max_tokens": 500, "ignore_eos": True, "stream": True}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    num_bytes = 0
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect((url.host, url.port or 80))
        client.sendall(head.encode() + body)
        for _ in range(5):
            num_bytes += len(client.recv(1))
            time.sleep(1)
    return num_bytes


CHECKS = {check.__name__: check for check in (crowd, cuts, stalls, turns, templates, hostile)}
"""All checks by name, in their order."""
