"""Routing to 1 to 1,000 replicas, simulated: which share of prompts is cached, and how evenly the load lies.

    python benchmarks/routing.py [--replicas 1,10,100,1000] [--routers 1] [--seed 0]

No model runs, and the same seed gives the same table. Users of applications, each of which begins its prompts with
instructions of its own, chat over several turns. A replica computes prompts one after another and decodes all requests
together; its cache keeps the pages used last. docs/scaling.md has the table and what it means.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import click

from pipelines.serve.routing import PrefixRouter, RoutingSettings

PAGE = 128
"""Tokens of a page of the cache, and of a key."""
CACHE_PAGES = 2048
PREFILL_TOKENS_S, DECODE_TOKENS_S = 10_000.0, 50.0
ARRIVALS_S = 2.0
"""Requests a second for each replica."""
NUM_APPS, SYSTEM_TOKENS = 40, (512, 8192)
NUM_TURNS, QUESTION_TOKENS, ANSWER_TOKENS, PAUSE_S = 5, (64, 512), (32, 512), 10.0

Choose = Callable[[Sequence[int], Mapping[str, int]], str]


@dataclass
class Replica:
    """A simulated replica. pages: of its cache, the one used longest ago first. free_at: when its prefill is idle."""

    num_running: int = 0
    num_requests: int = 0
    free_at: float = 0.0
    pages: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def prefill(self, now: float, keys: Sequence[int], num_tokens: int) -> tuple[int, float]:
        """Computes a prompt; returns how many tokens of it were cached, and when it is done."""
        num_pages = next((i for i, key in enumerate(keys) if key not in self.pages), len(keys))
        num_cached = min(num_pages * PAGE, num_tokens - 1)
        for key in reversed(keys):
            self.pages[key] = None
            self.pages.move_to_end(key)
        while len(self.pages) > CACHE_PAGES:
            self.pages.popitem(last=False)
        self.free_at = max(self.free_at, now) + (num_tokens - num_cached) / PREFILL_TOKENS_S
        return num_cached, self.free_at


@dataclass
class Conversation:
    """A user's conversation. keys: of the pages of its prompt so far."""

    rng: random.Random
    number: int
    app: int
    num_tokens: int
    num_turns_left: int
    keys: list[int] = field(default_factory=list)

    def ask(self) -> None:
        """Adds a question to the prompt."""
        self.num_tokens += self.rng.randint(*QUESTION_TOKENS)
        for page in range(len(self.keys), self.num_tokens // PAGE):
            owner = self.app if (page + 1) * PAGE <= system_tokens(self.app) else NUM_APPS + self.number
            self.keys.append(owner << 20 | page)
        self.num_turns_left -= 1


def system_tokens(app: int) -> int:
    """Tokens with which an application begins all its prompts."""
    return random.Random(app).randint(*SYSTEM_TOKENS)


def conversations(seed: int, num_replicas: int) -> Iterator[tuple[float, Conversation]]:
    """Conversations by the times of their beginnings; the k-th application has a share of 1/k."""
    rng, now, number = random.Random(seed), 0.0, 0
    sizes = [system_tokens(app) for app in range(NUM_APPS)]
    weights = [1 / (app + 1) for app in range(NUM_APPS)]
    while True:
        now += rng.expovariate(ARRIVALS_S * num_replicas / NUM_TURNS)
        app = rng.choices(range(NUM_APPS), weights)[0]
        yield now, Conversation(random.Random(f"{seed} {number}"), number, app, sizes[app], NUM_TURNS)
        number += 1


@dataclass
class Figures:
    """The figures of a run. imbalances: highest load over the mean, whenever a request came."""

    num_prompt: int = 0
    num_cached: int = 0
    imbalances: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)

    def row(self) -> list[str]:
        """Cells of the table."""
        times = sorted(self.first_token_s)
        return [
            f"{self.num_cached / self.num_prompt:.1%}",
            f"{sum(self.imbalances) / len(self.imbalances):.2f}",
            f"{max(self.requests) * len(self.requests) / sum(self.requests):.2f}",
            f"{1000 * times[len(times) // 2]:.0f}",
            f"{1000 * times[len(times) * 99 // 100]:.0f}",
        ]


class Simulation:
    """Replicas, and what happens to them in time.

    events: of a next turn, or, with a replica's name, the end of an answer; each with a number that settles ties.
    """

    def __init__(self, num_replicas: int, seed: int) -> None:
        self.replicas = {f"r{i}": Replica() for i in range(num_replicas)}
        self.loads = dict.fromkeys(self.replicas, 0)
        self.figures = Figures()
        self._rng = random.Random(seed)
        self._starts = conversations(seed, num_replicas)
        self._events: list[tuple[float, int, Conversation, str]] = []
        self._num_served = 0
        self._start_next()

    def run(self, choosers: Sequence[Choose], num_requests: int) -> Figures:
        """Runs requests; the first half fills the caches, the others count. choosers: of the routers, used by turns."""
        while self._num_served < num_requests:
            now, _, conversation, name = heapq.heappop(self._events)
            if name:
                self._end(now, conversation, name)
                continue
            if conversation.num_turns_left == NUM_TURNS:
                self._start_next()
            conversation.ask()
            name = choosers[self._num_served % len(choosers)](conversation.keys, self.loads)
            self._serve(now, conversation, name, is_counted=self._num_served >= num_requests // 2)
        self.figures.requests = [replica.num_requests for replica in self.replicas.values()]
        return self.figures

    def _start_next(self) -> None:
        start, conversation = next(self._starts)
        heapq.heappush(self._events, (start, -1, conversation, ""))

    def _end(self, now: float, conversation: Conversation, name: str) -> None:
        self.loads[name] -= 1
        if conversation.num_turns_left:
            pause = self._rng.expovariate(1 / PAUSE_S)
            heapq.heappush(self._events, (now + pause, self._num_served, conversation, ""))

    def _serve(self, now: float, conversation: Conversation, name: str, is_counted: bool) -> None:
        replica, num_tokens = self.replicas[name], conversation.num_tokens
        num_cached, done = replica.prefill(now, conversation.keys, num_tokens)
        self.loads[name] += 1
        self._num_served += 1
        if is_counted:
            replica.num_requests += 1
            self._count(num_tokens, num_cached, done - now)
        num_answer = conversation.rng.randint(*ANSWER_TOKENS)
        conversation.num_tokens += num_answer
        end = done + num_answer / DECODE_TOKENS_S
        heapq.heappush(self._events, (end, self._num_served, conversation, name))

    def _count(self, num_tokens: int, num_cached: int, first_token_s: float) -> None:
        self.figures.num_prompt += num_tokens
        self.figures.num_cached += num_cached
        self.figures.first_token_s.append(first_token_s)
        if self._num_served % max(1, len(self.loads) // 10) == 0:
            self.figures.imbalances.append(max(self.loads.values()) * len(self.loads) / sum(self.loads.values()))


def round_robin(names: Sequence[str]) -> Choose:
    """One replica after another."""
    turns = Counter[str]()

    def choose(keys: Sequence[int], loads: Mapping[str, int]) -> str:
        turns["all"] += 1
        return names[turns["all"] % len(names)]

    return choose


def least_loaded(names: Sequence[str]) -> Choose:
    """The replica with the fewest requests."""
    return lambda keys, loads: min(names, key=loads.__getitem__)


def prefix_affinity(load_factor: float) -> Callable[[Sequence[str]], Choose]:
    """The rule of pipelines/serve/routing.py, with a bound of the load."""

    def new(names: Sequence[str]) -> Choose:
        router = PrefixRouter(RoutingSettings(load_factor=load_factor, max_keys=CACHE_PAGES))
        router.set_replicas(names)

        def choose(keys: Sequence[int], loads: Mapping[str, int]) -> str:
            name = router.choose(keys, loads)
            router.remember(keys, name)
            return name

        return choose

    return new


POLICIES: dict[str, Callable[[Sequence[str]], Choose]] = {
    "round robin": round_robin,
    "least loaded": least_loaded,
    "prefix affinity, no bound": prefix_affinity(1e9),
    "prefix affinity, 1.25 x mean": prefix_affinity(1.25),
}


@click.command()
@click.option("--replicas", default="1,10,100,1000", show_default=True)
@click.option("--routers", type=click.IntRange(1), default=1, show_default=True, help="Gateways that know all loads.")
@click.option("--requests", type=click.IntRange(2), default=200, show_default=True, help="For each replica.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(replicas: str, routers: int, requests: int, seed: int) -> None:
    """Simulate the routing of requests to replicas."""
    click.echo("| replicas | policy | cached | in flight, max/mean | requests, max/mean | first token, ms | p99, ms |")
    click.echo("| --- | --- | --- | --- | --- | --- | --- |")
    for count in map(int, replicas.split(",")):
        for policy, new in POLICIES.items():
            names = [f"r{i}" for i in range(count)]
            # A router knows only what it sent itself; all know the loads.
            choosers = [new(names) for _ in range(routers)]
            figures = Simulation(count, seed).run(choosers, max(4000, requests * count))
            click.echo("| " + " | ".join([str(count), policy, *figures.row()]) + " |")


if __name__ == "__main__":
    main()
