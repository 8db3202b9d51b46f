"""The settings of a benchmark run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pipelines.errors import InputError

ENDPOINTS = ("completions", "chat")
DEFAULT_NUM_REQUESTS = 100

# field -> (smallest, largest)
_BOUNDS: dict[str, tuple[float, float]] = {
    "num_requests": (1, 1_000_000),
    "concurrency": (1, 100_000),
    "shared_prefix_tokens": (0, 10_000_000),
    "seed": (0, 2**63 - 1),
    "num_warmup": (0, 100_000),
    "timeout_s": (0.001, 7 * 86_400),
}


class TokenRange(NamedTuple):
    """Numbers of tokens from `low` to `high`, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, option: str, text: str) -> TokenRange:
        """Reads "256" or "128:512".

        Raises:
            InputError: The text is something else, a number is below 1, or `high` is below `low`.
        """
        match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text, re.ASCII)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high:
            raise InputError(f"{option} is '{text}': write a number of tokens from 1, or LOW:HIGH, as in 128:512")
        return cls(low, high)


_DEFAULT_PROMPT_TOKENS, _DEFAULT_OUTPUT_TOKENS = TokenRange(256, 256), TokenRange(128, 128)


@dataclass(frozen=True)
class BenchmarkSettings:
    """The settings of one benchmark run.

    url: the server's address, with or without /v1. model: None: the first that the server names. endpoint: one of
    ENDPOINTS. num_requests: None: DEFAULT_NUM_REQUESTS, or the number of prompts in the file. request_rate: mean
    arrivals a second, in a Poisson process; inf: no wait. concurrency: largest number of requests in flight.
    prompt_tokens: all tokens of a prompt but those of the shared prefix. prompts_file: prompts in place of random ones.
    seed: of prompts, lengths and arrivals; None: any. timeout_s: for one request. extra_body: fields of the requests;
    null removes one. plot_file: where to draw.

    Raises:
        InputError: A value is out of range, or two exclude each other.
    """

    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    endpoint: str = "completions"
    num_requests: int | None = None
    request_rate: float = math.inf
    concurrency: int | None = None
    prompt_tokens: TokenRange = _DEFAULT_PROMPT_TOKENS
    output_tokens: TokenRange = _DEFAULT_OUTPUT_TOKENS
    prompts_file: Path | None = None
    shared_prefix_tokens: int = 0
    seed: int | None = None
    num_warmup: int = 1
    ignore_eos: bool = True
    timeout_s: float = 600.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    plot_file: Path | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in _BOUNDS and value is not None:
                low, high = _BOUNDS[each.name]
                if not low <= value <= high:
                    raise InputError(f"{_option(each.name)} is {value}: give a number from {low:g} to {high:g}")
        if not self.request_rate > 0:
            raise InputError(f"--request-rate is {self.request_rate}: give a number above 0, or inf")
        if self.endpoint not in ENDPOINTS:
            raise InputError(f"--endpoint is '{self.endpoint}': choose one of {', '.join(ENDPOINTS)}")
        if self.api_key is not None and not (self.api_key and self.api_key.isascii() and self.api_key.isprintable()):
            raise InputError("--api-key must be printable ASCII characters, and not empty")
        if self.prompts_file is not None and self.shared_prefix_tokens:
            raise InputError("--shared-prefix-tokens is for random prompts: leave out it or --prompts")
        _ = self.root_url

    @property
    def root_url(self) -> str:
        """The address without /v1.

        Raises:
            InputError: It is none.
        """
        return _root_of(self.url)


def _root_of(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_usable = is_usable and not (parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:
        is_usable = False
    if not is_usable or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError(f"--url is '{url}': write an address such as http://localhost:8000")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _option(name: str) -> str:
    return "--warmup" if name == "num_warmup" else "--" + name.removesuffix("_s").replace("_", "-")
