"""What a request asks of sampling, checked once, where it comes in."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from pipelines.errors import InputError

# field -> (smallest, largest); None: no bound, or 0 excluded where it is the lower one
_WHOLE_NUMBERS: dict[str, tuple[int, int | None]] = {
    "max_new_tokens": (1, None),
    "top_k": (-1, None),
    "seed": (0, 2**64 - 1),
    "min_tokens": (0, None),
    "logprobs": (0, 20),
}
_NUMBERS: dict[str, tuple[float | None, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (None, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (None, 10.0),
    "presence_penalty": (-10.0, 10.0),
    "frequency_penalty": (-10.0, 10.0),
}
_OPTIONAL = frozenset({"max_new_tokens", "seed", "logprobs"})
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 1024


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are chosen, and when it ends. The default is greedy.

    `stop` may be given as one string; lists become tuples.

    Raises:
        InputError: a value is of the wrong kind or out of range.
    """

    max_new_tokens: int | None = None  # None: until the model's length limit
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0 or -1: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: different every time
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None  # None: off; n: the chosen token's and those of the n likeliest

    def __post_init__(self) -> None:
        for name, (low, high) in _WHOLE_NUMBERS.items():
            self._set(name, _whole_number(name, getattr(self, name), low, high))
        for name, bounds in _NUMBERS.items():
            self._set(name, _number(name, getattr(self, name), *bounds))
        if not isinstance(self.ignore_eos, bool):
            raise InputError(f"ignore_eos={self.ignore_eos!r} must be true or false")
        if self.max_new_tokens is not None and self.min_tokens > self.max_new_tokens:
            raise InputError(f"min_tokens={self.min_tokens} must not exceed max_new_tokens={self.max_new_tokens}")
        self._set("top_k", max(self.top_k, 0))
        self._set("stop", _stop_strings(self.stop))
        self._set("stop_token_ids", _stop_token_ids(self.stop_token_ids))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def needs_logits(self) -> bool:
        """False: the graph's own argmax is this request's answer."""
        return self.temperature > 0.0 or self.has_penalties or self.min_tokens > 0 or self.logprobs is not None

    def stop_ids(self, eos_token_ids: Collection[int]) -> frozenset[int]:
        """The tokens that end this request on a model with these end-of-text tokens."""
        return frozenset(self.stop_token_ids).union(() if self.ignore_eos else eos_token_ids)


def _whole_number(name: str, value: Any, low: int, high: int | None) -> int | None:
    if value is None and name in _OPTIONAL:
        return None
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):
        wanted = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise InputError(f"{name}={value!r} must be a whole number {wanted}")
    return int(value)


def _number(name: str, value: Any, low: float | None, high: float) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value > high or (value <= 0 if low is None else value < low):
        wanted = f"above 0 and at most {high:g}" if low is None else f"from {low:g} to {high:g}"
        raise InputError(f"{name}={value!r} must be a number {wanted}")
    return float(value)


def _stop_strings(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) for stop in stops):
        raise InputError(f"stop={value!r} must be a string or a list of strings")
    if len(stops) > _MAX_STOPS:
        raise InputError(f"stop has {len(stops)} strings, and at most {_MAX_STOPS} are allowed")
    for stop in stops:
        if not 0 < len(stop) <= _MAX_STOP_CHARACTERS:
            raise InputError(f"stop has a string of {len(stop)} characters: give 1 to {_MAX_STOP_CHARACTERS}")
    return tuple(stops)


def _stop_token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"stop_token_ids={value!r} must be a list of token ids")
    if len(value) > _MAX_STOPS:
        raise InputError(f"stop_token_ids has {len(value)} ids, and at most {_MAX_STOPS} are allowed")
    ids = (_whole_number(f"stop_token_ids[{i}]", token_id, 0, None) for i, token_id in enumerate(value))
    return tuple(token_id for token_id in ids if token_id is not None)
