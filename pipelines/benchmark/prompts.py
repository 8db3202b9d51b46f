"""Prompts: random ones of a given number of tokens for a server whose tokenizer is unknown, or those of a file."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.benchmark.settings import BenchmarkSettings
from pipelines.errors import InputError

OPENER = "Text:"
"""The begin of each random prompt, so that every word after it follows a space."""

_WORDS = """
    a the of and to in is was for on as with by that from at it an are this be or not also one but first have new
    all has can will if no use set end more than other time only when into then you we do so up out over some name
    list value line file data text number return call test class type string
"""
WORDS = tuple(_WORDS.split())
"""Words that most vocabularies have as one token."""

_MIN_SINGLE_TOKEN_WORDS = 16

Count = Callable[[str], Awaitable[int | None]]
"""A function that asks the server for the number of tokens of a prompt with a text; None: it does not tell."""


@dataclass(frozen=True)
class Prompt:
    """A prompt. num_tokens: as calibrated; None: unknown. max_tokens: of its answer; None: the run's."""

    text: str
    num_tokens: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Calibration:
    """Token counts of a server. overhead: of a prompt without words. costs: of each word."""

    overhead: int
    costs: Mapping[str, int]

    def words_of(self, num_tokens: int, rng: random.Random) -> list[str]:
        """Draws words of that many tokens, or the next smaller number that words add up to."""
        words = list(self.costs)
        if set(self.costs.values()) == {1}:
            return rng.choices(words, k=num_tokens)
        drawn: list[str] = []
        while fitting := [word for word in words if self.costs[word] <= num_tokens]:
            drawn.append(rng.choice(fitting))
            num_tokens -= self.costs[drawn[-1]]
        return drawn


UNCALIBRATED = Calibration(overhead=0, costs=dict.fromkeys(WORDS, 1))
"""For servers that count no tokens: a word is taken for a token."""


async def calibrate(count: Count) -> Calibration | None:
    """Finds what a server adds to a prompt, and the tokens of each word; None: it does not tell.

    Two questions suffice if each word is one token; otherwise halves are asked for, down to the words that are more.
    """
    overhead = await count(OPENER)
    if overhead is None:
        return None
    costs: dict[str, int] = {}
    groups: list[tuple[str, ...]] = [WORDS]
    while groups:
        group = groups.pop()
        total = await count(" ".join((OPENER, *group)))
        if total is None:
            return None
        if len(group) == 1 or total - overhead == len(group):
            costs |= dict.fromkeys(group, max(1, (total - overhead) // len(group)))
        else:
            groups += [group[: len(group) // 2], group[len(group) // 2 :]]
    single = {word: cost for word, cost in costs.items() if cost == 1}
    return Calibration(overhead, single if len(single) >= _MIN_SINGLE_TOKEN_WORDS else costs)


def random_prompts(settings: BenchmarkSettings, calibration: Calibration, num_prompts: int) -> list[Prompt]:
    """Draws prompts that have the shared prefix in common, and nothing else but by chance.

    Raises:
        InputError: The server's overhead leaves no token for a word.
    """
    low, high = settings.prompt_tokens
    if low <= calibration.overhead:
        raise InputError(
            f"--prompt-tokens is {low}: the server adds {calibration.overhead} tokens to a prompt, so give more"
        )
    rng = random.Random(f"prompts {settings.seed}")
    prefix = calibration.words_of(settings.shared_prefix_tokens, random.Random(f"prefix {settings.seed}"))
    prompts = []
    for _ in range(num_prompts):
        num_words = rng.randint(low, high) - calibration.overhead
        words = prefix + calibration.words_of(num_words, rng)
        num_tokens = calibration.overhead + sum(calibration.costs[word] for word in words)
        prompts.append(Prompt(" ".join((OPENER, *words)), num_tokens))
    return prompts


def read_prompts(path: Path) -> list[Prompt]:
    """Reads a text a line, or, from a file whose name ends with .jsonl, a JSON string or object a line.

    An object has `prompt`, and may have `output_tokens`.

    Raises:
        InputError: The file can't be read, has no prompts, or a line that is none of this.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() cuts at U+2028 too
    except OSError as error:
        raise InputError(f"can't read --prompts {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--prompts {path} is not UTF-8 (byte {error.start})") from None
    read_line = _read_json if path.suffix.lower() == ".jsonl" else Prompt
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompts.append(read_line(line))
            except (ValueError, LookupError, TypeError):
                raise InputError(
                    f'--prompts {path}, line {number}: write a JSON string, or {{"prompt": TEXT, "output_tokens": N}}'
                ) from None
    if not prompts:
        raise InputError(f"--prompts {path} has no prompts: write one a line")
    return prompts


def _read_json(line: str) -> Prompt:
    entry: Any = json.loads(line)
    if isinstance(entry, str):
        entry = {"prompt": entry}
    text, max_tokens = entry["prompt"], entry.get("output_tokens")
    if not (isinstance(text, str) and text) or not (max_tokens is None or (type(max_tokens) is int and max_tokens > 0)):
        raise ValueError
    return Prompt(text, max_tokens=max_tokens)


def take(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first `count` prompts, from the start again when there are no more."""
    return [prompts[i % len(prompts)] for i in range(count)]
