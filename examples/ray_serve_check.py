"""Shows what examples/ray_serve.py promises: kills a replica under load, then replaces all replicas under load.

    python examples/ray_serve_check.py [--replicas 2] [--clients 12] [--seconds 20]

It serves the demo model, lets clients chat over several turns, streaming and not, and kills a replica's process
(SIGKILL). Every request must succeed, or be one that the killed replica was running and end with an error in the form
of the API. Then all replicas are replaced while the clients go on, and every request must succeed. Exits with 1
otherwise.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import click
import httpx
import ray_serve
from ray.serve.context import _get_global_client

from pipelines.config import PipelineConfig
from pipelines.load import load_pipeline
from pipelines.serve.settings import ServeSettings

NUM_TURNS, MAX_TOKENS = 4, 48
WAIT_S = 180.0
SYSTEM = "Answer in one short sentence. " * 40
OK, LOST_STREAM, LOST_ANSWER = "succeeded", "ended with an error event", "answered 500 replica_lost"


@dataclass
class Seen:
    """What the clients saw. others: outcomes that must not be."""

    outcomes: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    num_cached: int = 0
    num_prompt: int = 0
    num_running: int = 0

    def add(self, outcome: str) -> None:
        """Counts the end of a request."""
        known = outcome in (OK, LOST_STREAM, LOST_ANSWER)
        (self.outcomes if known else self.others)[outcome] += 1

    @property
    def num_lost(self) -> int:
        """Requests that ended with an error because their replica did."""
        return self.outcomes[LOST_STREAM] + self.outcomes[LOST_ANSWER]

    def __str__(self) -> str:
        ends = [f"{count} {outcome}" for outcome, count in (self.outcomes + self.others).items()]
        return f"{', '.join(ends)}; {self.num_cached / max(self.num_prompt, 1):.0%} of prompt tokens were cached"


class Client:
    """A user who chats, one conversation after another, until told to stop."""

    def __init__(self, http: httpx.AsyncClient, number: int, seen: Seen) -> None:
        self._http, self._rng, self.seen = http, random.Random(number), seen
        self._is_streaming = number % 2 == 0

    async def run(self, stop: asyncio.Event) -> None:
        """Chats."""
        while not stop.is_set():
            topic = f"{SYSTEM} You are assistant {self._rng.randrange(3)}."
            messages = [{"role": "system", "content": topic}]
            for _ in range(NUM_TURNS):
                messages.append({"role": "user", "content": f"def f_{self._rng.randrange(999)}(x):" * 8})
                body = {"model": "demo", "messages": messages, "max_tokens": MAX_TOKENS, "ignore_eos": True}
                self.seen.num_running += 1
                try:
                    outcome, text = await (self._stream(body) if self._is_streaming else self._ask(body))
                except httpx.HTTPError as error:
                    outcome, text = f"broke off: {type(error).__name__}", ""
                self.seen.num_running -= 1
                self.seen.add(outcome)
                if stop.is_set() or outcome != OK:
                    break
                messages.append({"role": "assistant", "content": text})

    async def _ask(self, body: dict[str, object]) -> tuple[str, str]:
        answer = await self._http.post("/v1/chat/completions", json=body)
        if answer.status_code != 200:
            is_lost = answer.status_code == 500 and answer.json()["error"]["code"] == "replica_lost"
            return LOST_ANSWER if is_lost else f"answered {answer.status_code}: {answer.text[:200]}", ""
        self._count(answer.json()["usage"])
        return OK, answer.json()["choices"][0]["message"]["content"] or ""

    async def _stream(self, body: dict[str, object]) -> tuple[str, str]:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        text, lines = "", list[str]()
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                lines += [line.removeprefix("data: ")] if line else []
        if answer.status_code != 200:
            is_lost = answer.status_code == 500 and "replica_lost" in lines[0]
            return LOST_ANSWER if is_lost else f"answered {answer.status_code}: {lines}", ""
        if not lines or lines[-1] != "[DONE]":
            return "was a stream without an end", ""
        for chunk in map(json.loads, lines[:-1]):
            if "error" in chunk:
                is_lost = chunk["error"]["code"] == "replica_lost"
                return LOST_STREAM if is_lost else f"had an error event: {chunk}", ""
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            if chunk.get("usage"):
                self._count(chunk["usage"])
        return OK, text

    def _count(self, usage: dict[str, dict[str, int]]) -> None:
        self.seen.num_cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        self.seen.num_prompt += int(usage["prompt_tokens"])  # type: ignore[call-overload]


@dataclass
class Deployment:
    """The deployment under test, and how to change it."""

    config: PipelineConfig
    settings: ServeSettings
    scale: ray_serve.ScaleSettings

    def deploy(self) -> None:
        """Deploys, and waits until all replicas are ready."""
        load = partial(load_pipeline, self.config)
        ray_serve.deploy(ray_serve.application(load, self.settings, self.scale))

    def replace_all(self) -> None:
        """Replaces every replica by one of the next generation."""
        self.scale = replace(self.scale, generation=self.scale.generation + 1)
        self.deploy()

    def processes(self) -> set[int]:
        """Ids of the processes of replicas that serve, as the controller knows them."""
        details = _get_global_client().get_serve_details()["applications"][ray_serve.APP]
        replicas = details["deployments"][ray_serve.REPLICAS]["replicas"]
        return {replica["pid"] for replica in replicas if replica["state"] == "RUNNING"}

    def wait_for_all(self, gone: set[int]) -> float:
        """Waits until as many replicas as were asked for run in processes other than `gone`; returns the seconds."""
        start = time.monotonic()
        while len(now := self.processes()) < self.scale.num_replicas or now & gone:
            if time.monotonic() - start > WAIT_S:
                raise click.ClickException(f"after {WAIT_S:g} s the replicas' processes are {sorted(now)}")
            time.sleep(0.5)
        return time.monotonic() - start


async def under_load(url: str, num_clients: int, seconds: float, act: Callable[[], str]) -> Seen:
    """Calls `act` while clients chat, and goes on for a while; returns what they saw."""
    seen, stop = Seen(), asyncio.Event()
    limits = httpx.Limits(max_connections=num_clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        clients = [asyncio.create_task(Client(http, number, seen).run(stop)) for number in range(num_clients)]
        await asyncio.sleep(seconds / 2)
        click.echo(f"  {sum(seen.outcomes.values())} requests have succeeded, {seen.num_running} are in flight")
        click.echo("  " + await asyncio.to_thread(act))
        await asyncio.sleep(seconds / 2)
        stop.set()
        await asyncio.gather(*clients)
    click.echo(f"  {seen}")
    return seen


def kill_one(deployment: Deployment) -> str:
    """Kills the process of a replica, and waits for its successor."""
    victim = min(deployment.processes())
    os.kill(victim, signal.SIGKILL)
    return f"killed replica process {victim}; after {deployment.wait_for_all({victim}):.1f} s all replicas ran again"


def replace_all(deployment: Deployment) -> str:
    """Replaces all replicas, and waits for that."""
    before = deployment.processes()
    start = time.monotonic()
    deployment.replace_all()
    deployment.wait_for_all(before)
    return f"replaced processes {sorted(before)} within {time.monotonic() - start:.1f} s"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@click.command()
@click.option("--replicas", type=click.IntRange(2), default=2, show_default=True)
@click.option("--clients", type=click.IntRange(1), default=12, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Requests a replica runs.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Of load, beside the waits, in each part.")
def main(replicas: int, clients: int, batch_size: int, seconds: float) -> None:
    """Kill a replica under load, then replace all replicas under load."""
    deployment = Deployment(
        PipelineConfig(max_batch_size=batch_size, enable_prefix_caching=True),
        ServeSettings(served_model_names=("demo",)),
        ray_serve.ScaleSettings(replicas, num_running=batch_size),
    )
    port = free_port()
    with ray_serve.cluster(None, replicas + 1, "127.0.0.1", port):
        deployment.deploy()
        url = f"http://127.0.0.1:{port}"
        click.echo(f"{replicas} replicas of {batch_size} requests, {clients} clients")
        click.echo("a replica is killed:")
        killed = asyncio.run(under_load(url, clients, seconds, lambda: kill_one(deployment)))
        click.echo("all replicas are replaced:")
        replaced = asyncio.run(under_load(url, clients, seconds, lambda: replace_all(deployment)))
    bad = killed.others + replaced.others
    is_good = not bad and 0 < killed.num_lost <= batch_size and not replaced.num_lost
    click.echo(f"{'PASSED' if is_good else 'FAILED'}: the killed replica ran at most {batch_size} requests")
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
