"""Which replica serves a request: the one that has the beginning of its prompt in its cache, unless it is overloaded.

It knows neither replicas nor a network: `examples/ray_serve.py` routes by it, and `benchmarks/routing.py` simulates it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEY_CHARS = 512
"""Characters of a prompt between two of its keys: about a page of the KV cache, below which nothing is reused."""
MAX_KEYS = 512
"""The most keys of a prompt; what is longer is told apart by its beginning."""

_MASK = 2**64 - 1
_OPENINGS = ("tools", "system", "instructions")
_PROMPTS = ("messages", "input", "prompt")


def prompt_keys(body: bytes) -> list[int]:
    """Keys of ever longer beginnings of a request's prompt, the shortest first; none for what is no JSON object.

    Two requests have as many keys in common as their prompts have whole pieces of KEY_CHARS. Requests with the same
    `prompt_cache_key`, or else the same user, have at least one; those with other ones, or another `cache_salt`, none.

    body: of a request to any of the server's APIs.
    """
    try:
        request = json.loads(body)
    except ValueError:
        return []
    if not isinstance(request, dict):
        return []
    label, text = _label(request), _prompt_text(request)
    last = _digest(b"", label)
    keys = [last] if label else []
    for start in range(0, min(len(text) // KEY_CHARS, MAX_KEYS) * KEY_CHARS, KEY_CHARS):
        last = _digest(last, text[start : start + KEY_CHARS])
        keys.append(last)
    return [int.from_bytes(key) for key in keys]


def _label(request: Mapping[str, Any]) -> str:
    metadata = request.get("metadata")
    users = [request.get("user"), metadata.get("user_id") if isinstance(metadata, dict) else None]
    owner = request.get("prompt_cache_key") or next(filter(None, users), None)
    label = [owner, request.get("cache_salt")]
    return json.dumps(label, sort_keys=True) if any(label) else ""


def _prompt_text(request: Mapping[str, Any]) -> str:
    """The prompt as one text, which a longer conversation continues."""
    parts = [request[name] for name in _OPENINGS if request.get(name)]
    for name in _PROMPTS:
        prompt = request.get(name)
        parts += prompt if isinstance(prompt, list) else [prompt] if prompt else []
    return "\n".join(part if isinstance(part, str) else json.dumps(part, sort_keys=True) for part in parts)


def _digest(last: bytes, text: str) -> bytes:
    return hashlib.blake2b(last + text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


@dataclass(frozen=True)
class RoutingSettings:
    """The settings of a router.

    load_factor: a replica is overloaded from so many times the mean load on. free_load: but never below this load.
    max_keys: keys that are remembered for a replica: about what its KV cache holds.

    Raises:
        ValueError: load_factor is below 1, so that all replicas could be overloaded.
    """

    load_factor: float = 1.25
    free_load: int = 2
    max_keys: int = 8192

    def __post_init__(self) -> None:
        if not self.load_factor >= 1:
            raise ValueError(f"load_factor is {self.load_factor}: give 1 or more")


class PrefixRouter:
    """Remembers which replica got which beginnings of prompts, and orders the replicas for a request.

    Replicas are named by strings, and their loads are numbers of requests that they run.
    """

    def __init__(self, settings: RoutingSettings | None = None) -> None:
        self._settings = settings or RoutingSettings()
        self._keys: dict[str, OrderedDict[int, None]] = {}  # of each replica, the one used longest ago first
        self._holders: dict[int, set[str]] = {}  # the same, by key
        self._names: dict[str, int] = {}  # of replicas, as numbers

    def set_replicas(self, names: Sequence[str]) -> None:
        """Replaces the set of replicas; what one that is gone had is forgotten."""
        for gone in self._keys.keys() - set(names):
            for key in self._keys.pop(gone):
                self._drop_holder(key, gone)
        self._keys |= {name: OrderedDict() for name in names if name not in self._keys}
        self._names = {name: int.from_bytes(_digest(b"", name)) for name in names}

    def choose(self, keys: Sequence[int], loads: Mapping[str, int]) -> str:
        """Returns the replica for a request: of those that are not overloaded, one that has most of its prompt.

        What no replica has goes to one that follows from its first key, so that several routers agree; a request
        without keys to the least loaded.

        Args:
            keys: Those of the request.
            loads: Load of each replica that may be chosen; not empty.
        """
        bound = self.load_bound(loads)
        for key in reversed(keys):
            if holders := [name for name in self._holders.get(key, ()) if loads.get(name, bound) < bound]:
                return min(holders, key=lambda name: (loads[name], self._rank(keys[0], name)))
        if not keys:
            return min(loads, key=lambda name: (loads[name], name))
        free = [name for name, load in loads.items() if load < bound]
        return min(free, key=lambda name: self._rank(keys[0], name))

    def load_bound(self, loads: Mapping[str, int]) -> int:
        """Load from which on a replica is overloaded; always more than the least of the loads."""
        mean = (sum(loads.values()) + 1) / len(loads)
        return max(self._settings.free_load, math.ceil(self._settings.load_factor * mean))

    def order(self, keys: Sequence[int], loads: Mapping[str, int]) -> list[str]:
        """Returns all replicas: the one for the request, and then the others by their loads."""
        first = self.choose(keys, loads)
        others = sorted((name for name in loads if name != first), key=lambda name: (loads[name], name))
        return [first, *others]

    def remember(self, keys: Sequence[int], name: str) -> None:
        """Notes that a replica has got a prompt."""
        if name not in self._keys:
            return
        held = self._keys[name]
        for key in reversed(keys):  # beginnings live longest, as in the KV cache
            held[key] = None
            held.move_to_end(key)
            self._holders.setdefault(key, set()).add(name)
        while len(held) > self._settings.max_keys:
            self._drop_holder(held.popitem(last=False)[0], name)

    def _drop_holder(self, key: int, name: str) -> None:
        self._holders[key].discard(name)
        if not self._holders[key]:
            del self._holders[key]

    def _rank(self, key: int, name: str) -> int:
        """A number that follows from both, in every process: the least one wins (rendezvous hashing)."""
        mixed = (key ^ self._names.get(name, 0)) & _MASK
        for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # the finalizer of splitmix64
            mixed = ((mixed ^ (mixed >> 30)) * multiplier) & _MASK
        return mixed ^ (mixed >> 31)
