"""The settings of a benchmark of a model in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.errors import InputError

TestKind = Literal["prompt", "generate"]

# field -> (option, smallest, largest)
_BOUNDS = {
    "prompt_lengths": ("--prompt-length", 0, 2**24),
    "generate_lengths": ("--generate-length", 0, 2**24),
    "depths": ("--depth", 0, 2**24),
    "batch_sizes": ("--batch-size", 1, 4096),
    "repetitions": ("--repetitions", 1, 10_000),
    "seed": ("--seed", 0, 2**63 - 1),
}


@dataclass(frozen=True)
class LocalTest:
    """One line of the table: `batch_size` rows that have `depth` tokens each compute `length` more.

    kind: "prompt", all of them known; "generate", one after the other.
    """

    kind: TestKind
    length: int
    depth: int
    batch_size: int

    @property
    def name(self) -> str:
        """Kind and length, as llama-bench writes them: pp512, tg128."""
        return f"{'pp' if self.kind == 'prompt' else 'tg'}{self.length}"

    @property
    def num_tokens(self) -> int:
        """The tokens that one repetition computes."""
        return self.batch_size * self.length

    @property
    def max_row_tokens(self) -> int:
        """The tokens that a row has in the end."""
        return self.depth + self.length


@dataclass(frozen=True)
class LocalSettings:
    """The tests to run: each length at each depth with each batch size.

    prompt_lengths, generate_lengths: tokens of a row; 0 leaves that kind out. depths: tokens that the rows have before.
    repetitions: of each test, after one that does not count. seed: of the tokens.

    Raises:
        InputError: A value is out of range, or nothing is left to measure.
    """

    prompt_lengths: Sequence[int] = (512,)
    generate_lengths: Sequence[int] = (128,)
    depths: Sequence[int] = (0,)
    batch_sizes: Sequence[int] = (1,)
    repetitions: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (option, low, high) in _BOUNDS.items():
            value = getattr(self, name)
            for number in value if isinstance(value, Sequence) else (value,):
                if not low <= number <= high:
                    raise InputError(f"{option} is {number}: give a number from {low} to {high}")
        if not list(self.tests()):
            raise InputError("nothing to measure: give a --prompt-length or a --generate-length above 0")

    def tests(self) -> Iterator[LocalTest]:
        """The tests in the order of the table: none twice, those at one depth together."""
        for depth in dict.fromkeys(self.depths):
            for batch_size in dict.fromkeys(self.batch_sizes):
                for length in dict.fromkeys(filter(None, self.prompt_lengths)):
                    yield LocalTest("prompt", length, depth, batch_size)
                for length in dict.fromkeys(filter(None, self.generate_lengths)):
                    yield LocalTest("generate", length, depth, batch_size)

    @property
    def max_length(self) -> int:
        """The most tokens that a row has."""
        return max(test.max_row_tokens for test in self.tests())

    @property
    def max_batch_size(self) -> int:
        """The most rows of a step."""
        return max(test.batch_size for test in self.tests())
