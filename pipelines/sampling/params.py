"""Sampling parameters of a request, checked once, when they are created."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from reprlib import repr as shown
from typing import TYPE_CHECKING, Any

from pipelines.errors import InputError

if TYPE_CHECKING:
    from pipelines.sampling.defaults import SamplingDefaults

OPEN_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Fields that a caller may leave open: None is replaced by the checkpoint's default."""

_MAX_TOKEN_ID = 2**31 - 1
# field -> (smallest, largest); None: no bound, or 0 excluded where it is the lower one
_WHOLE_NUMBERS: dict[str, tuple[int, int | None]] = {
    "max_new_tokens": (1, None),
    "top_k": (-1, None),
    "seed": (0, 2**64 - 1),
    "min_tokens": (0, None),
    "logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
}
_NUMBERS: dict[str, tuple[float | None, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (None, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (None, 10.0),
    "presence_penalty": (-10.0, 10.0),
    "frequency_penalty": (-10.0, 10.0),
}
_BOOLEANS = ("ignore_eos", "skip_special_tokens")
_OPTIONAL = frozenset({"max_new_tokens", "seed", "logprobs", "prompt_logprobs", *OPEN_FIELDS})
_MAX_STOPS = 16
_MAX_CHARACTERS = 1024  # of a stop string, of a cache_salt
_MAX_BIASES = 1024


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of one request: the choice of its tokens, and its end.

    Without a checkpoint's defaults (`resolved`) the choice is greedy. `stop` may be given as one string, `logit_bias`
    as a mapping or as pairs; they are kept as tuples, so that parameters can be hashed and compared.

    logit_bias: numbers added to the logits of tokens, -100 to 100. allowed_token_ids: the only tokens that may be
    chosen; None: all. cache_salt: requests with different salts share no cached prefix. skip_special_tokens: leaves
    control tokens out of the text. logprobs, prompt_logprobs: n for the log probabilities of the chosen tokens, or of
    the prompt's, with those of the n likeliest; None: off.

    Raises:
        InputError: A value has the wrong type or is out of range.
    """

    max_new_tokens: int | None = None  # None: until the model's length limit
    temperature: float | None = None  # 0: greedy
    top_k: int | None = None  # 0 or -1: off
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: different every time
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    cache_salt: str | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name, (low, high) in _WHOLE_NUMBERS.items():
            self._set(name, _whole_number(name, getattr(self, name), low, high))
        for name, bounds in _NUMBERS.items():
            self._set(name, _number(name, getattr(self, name), *bounds))
        for name in _BOOLEANS:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}={shown(getattr(self, name))} must be true or false")
        if self.max_new_tokens is not None and self.min_tokens > self.max_new_tokens:
            raise InputError(f"min_tokens={self.min_tokens} must not exceed max_new_tokens={self.max_new_tokens}")
        self._set("top_k", None if self.top_k is None else max(self.top_k, 0))
        self._set("stop", _stop_strings(self.stop))
        self._set("stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids, _MAX_STOPS))
        self._set("logit_bias", _logit_bias(self.logit_bias))
        self._set("allowed_token_ids", _allowed_token_ids(self.allowed_token_ids))
        _check_cache_salt(self.cache_salt)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def resolved(self, defaults: SamplingDefaults | None = None) -> ResolvedSamplingParams:
        """Returns the parameters with every open field set: from `defaults`, or else greedy and without cuts."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in OPEN_FIELDS:
            if given[name] is None:
                given[name] = getattr(defaults, name, None)
        return ResolvedSamplingParams(**{name: value for name, value in given.items() if value is not None})

    def check_vocabulary(self, vocab_size: int) -> None:
        """Checks the token ids, once the vocabulary is known.

        Raises:
            InputError: An id of logit_bias, allowed_token_ids or stop_token_ids is outside the vocabulary.
        """
        for name in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
            ids = dict(self.logit_bias) if name == "logit_bias" else getattr(self, name) or ()
            if (largest := max(ids, default=-1)) >= vocab_size:
                raise InputError(f"{name}: token id {largest} is outside the vocabulary of {vocab_size}")

    @property
    def has_penalties(self) -> bool:
        """Whether a repetition, presence or frequency penalty has an effect."""
        return (
            self.repetition_penalty not in (None, 1.0) or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        )

    @property
    def needs_logits(self) -> bool:
        """Whether the next token needs the row of logits: the graph's own argmax does not suffice."""
        changes_logits = self.has_penalties or self.min_tokens > 0 or self.logit_bias or self.allowed_token_ids
        return bool(self.temperature or changes_logits or self.logprobs is not None)

    def stop_ids(self, eos_token_ids: Collection[int]) -> frozenset[int]:
        """The tokens that end this request on a model with these end-of-text tokens."""
        return frozenset(self.stop_token_ids).union(() if self.ignore_eos else eos_token_ids)


@dataclass(frozen=True)
class ResolvedSamplingParams(SamplingParams):
    """Sampling parameters with no field left open, as `SamplingParams.resolved` returns them.

    Raises:
        InputError: As SamplingParams, or a field is left open.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in OPEN_FIELDS:
            if getattr(self, name) is None:
                raise InputError(f"{name}=None must be a number")

    def resolved(self, defaults: SamplingDefaults | None = None) -> ResolvedSamplingParams:
        """Returns itself: nothing is open."""
        return self


def _whole_number(name: str, value: Any, low: int, high: int | None) -> int | None:
    if value is None and name in _OPTIONAL:
        return None
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):
        wanted = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise InputError(f"{name}={shown(value)} must be a whole number {wanted}")
    return int(value)


def _number(name: str, value: Any, low: float | None, high: float) -> float | None:
    if value is None and name in _OPTIONAL:
        return None
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    # NaN fails every comparison.
    if not is_number or not value <= high or not (value > 0 if low is None else value >= low):
        wanted = f"above 0 and at most {high:g}" if low is None else f"from {low:g} to {high:g}"
        raise InputError(f"{name}={shown(value)} must be a number {wanted}")
    return float(value)


def _stop_strings(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) for stop in stops):
        raise InputError(f"stop={shown(value)} must be a string or a list of strings")
    if len(stops) > _MAX_STOPS:
        raise InputError(f"stop has {len(stops)} strings, and at most {_MAX_STOPS} are allowed")
    for stop in stops:
        if not 0 < len(stop) <= _MAX_CHARACTERS:
            raise InputError(f"stop has a string of {len(stop)} characters: give 1 to {_MAX_CHARACTERS}")
    return tuple(stops)


def _token_ids(name: str, value: Any, max_count: int | None = None) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{name}={shown(value)} must be a list of token ids")
    if max_count is not None and len(value) > max_count:
        raise InputError(f"{name} has {len(value)} ids, and at most {max_count} are allowed")
    if all(type(token_id) is int and 0 <= token_id <= _MAX_TOKEN_ID for token_id in value):
        return tuple(value)  # lists may be as long as the vocabulary
    ids = (_whole_number(f"{name}[{i}]", token_id, 0, _MAX_TOKEN_ID) for i, token_id in enumerate(value))
    return tuple(token_id for token_id in ids if token_id is not None)


def _allowed_token_ids(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not (ids := _token_ids("allowed_token_ids", value)):
        raise InputError("allowed_token_ids is empty: allow a token, or leave it out to allow all")
    return tuple(sorted(set(ids)))


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    is_pairs = isinstance(pairs, (list, tuple)) and all(isinstance(pair, (list, tuple)) for pair in pairs)
    if not is_pairs or not all(len(pair) == 2 for pair in pairs):
        raise InputError(f"logit_bias={shown(value)} must map token ids to numbers")
    if len(pairs) > _MAX_BIASES:
        raise InputError(f"logit_bias has {len(pairs)} tokens, and at most {_MAX_BIASES} are allowed")
    biases: dict[int, float] = {}
    for key, bias in pairs:
        (token_id,) = _token_ids("logit_bias", [key])
        if token_id in biases:
            raise InputError(f"logit_bias has token id {token_id} twice")
        biases[token_id] = _number(f"logit_bias[{token_id}]", bias, -100.0, 100.0) or 0.0
    return tuple(sorted(biases.items()))


def _check_cache_salt(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_CHARACTERS:
        raise InputError(f"cache_salt={shown(value)} must be a string of 1 to {_MAX_CHARACTERS} characters")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(
            f"cache_salt={shown(value)} must be text that has an encoding: it holds half of a surrogate pair"
        )
