"""The record of a request: when it was due and sent, what came back and when, and why it failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

Clock = Callable[[], float]
"""A clock that gives the seconds since the load began."""


@dataclass(frozen=True)
class RequestPlan:
    """A request to send.

    num_prompt_tokens: as calibrated; None for texts of the user's own. scheduled_s: seconds after the load's begin at
    which it is due; None: as soon as it can be sent.
    """

    prompt: str
    max_tokens: int
    num_prompt_tokens: int | None = None
    scheduled_s: float | None = None


class RequestError(Exception):
    """The reason why a request failed. kind: a few words by which failures are counted."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(" ".join(message.split())[:300] or kind)
        self.kind = kind


@dataclass
class Outcome:
    """A request that has ended, with times in seconds since the load began.

    sent_s: when it was handed to the network. chunk_times_s: arrivals of the chunks with text. end_s: arrival of the
    last chunk with a choice, or the time of the failure. usage_prompt_tokens, usage_output_tokens: as the server says;
    None: it does not. num_cached_tokens: of the prompt, that the server took from its prefix cache. has_ended: the
    stream has said that it is complete.
    """

    plan: RequestPlan
    sent_s: float = 0.0
    chunk_times_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    usage_prompt_tokens: int | None = None
    usage_output_tokens: int | None = None
    num_cached_tokens: int = 0
    has_ended: bool = False
    error: RequestError | None = None

    @property
    def start_s(self) -> float:
        """The time from which latencies count: when it was due, or, if it was due at no time, when it was sent."""
        return self.sent_s if self.plan.scheduled_s is None else self.plan.scheduled_s

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, by the server, or as calibrated where it does not say."""
        return self.usage_prompt_tokens if self.usage_prompt_tokens is not None else self.plan.num_prompt_tokens or 0

    @property
    def num_output_tokens(self) -> int:
        """Tokens of the answer, by the server, or its chunks where it does not say."""
        return len(self.chunk_times_s) if self.usage_output_tokens is None else self.usage_output_tokens

    @property
    def send_delay_s(self) -> float:
        """Time between when it was due and when it was sent."""
        return self.sent_s - self.start_s

    @property
    def ttft_s(self) -> float:
        """Time to the first chunk with text."""
        return self.chunk_times_s[0] - self.start_s

    @property
    def itl_s(self) -> list[float]:
        """Gaps between chunks with text."""
        return [after - before for before, after in pairwise(self.chunk_times_s)]

    @property
    def tpot_s(self) -> float | None:
        """Time for each output token after the first; None: there is one only."""
        num_after_first = self.num_output_tokens - 1
        return (self.end_s - self.chunk_times_s[0]) / num_after_first if num_after_first > 0 else None

    @property
    def e2e_s(self) -> float:
        """Time to the last chunk."""
        return self.end_s - self.start_s
