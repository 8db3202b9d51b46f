"""An answer as a sequence of blocks, as the APIs beside chat completions have it: reasoning, texts and tool calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.serve.chat.turn import TurnStep
from pipelines.text.parsers import Content, Delta, Reasoning, ToolCall

BlockKind = Literal["reasoning", "text", "call"]


@dataclass(eq=False)
class Block:
    """A part of an answer, so far.

    index: among the blocks. text: of a call the JSON text of its arguments. call_id, name: of a call. num_tokens,
    logprobs: of the tokens that were generated while it was the last block, markers between blocks included. is_cut:
    whether the limit of tokens ended the answer in it.
    """

    kind: BlockKind
    index: int
    call_id: str = ""
    name: str = ""
    text: str = ""
    num_tokens: int = 0
    logprobs: list[TokenLogProbs] = field(default_factory=list)
    is_cut: bool = False


@dataclass(frozen=True)
class BlockChange:
    """A change of a block: it starts empty, gets more text, or ends. text: the addition."""

    kind: Literal["start", "delta", "end"]
    block: Block
    text: str = ""


class AnswerBlocks:
    """The blocks of one choice, put together while it is generated; each ends before the next one starts.

    An answer without any text has one empty text, since clients look for one.
    """

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._num_calls = 0
        self._num_tokens, self._logprobs = 0, list[TokenLogProbs]()  # that belong to no block yet

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of the reasoning, its markers included."""
        return sum(block.num_tokens for block in self.blocks if block.kind == "reasoning")

    def take(self, step: TurnStep) -> Sequence[BlockChange]:
        """Takes a step of the turn, the last one included; returns what it changes."""
        changes = [change for delta in step.deltas for change in self._delta(delta)]
        if step.finish_reason is not None and not self.blocks:
            changes += self._start("text")
        self._attribute(step)
        if step.finish_reason is not None:
            self.blocks[-1].is_cut = step.finish_reason == "length"
            changes.append(BlockChange("end", self.blocks[-1]))
        return changes

    def _delta(self, delta: Delta) -> Iterator[BlockChange]:
        match delta:
            case Content(text):
                yield from self._text("text", text)
            case Reasoning(text):
                yield from self._text("reasoning", text)
            case ToolCall(index, call_id, name, arguments):
                if index == self._num_calls:
                    self._num_calls += 1
                    yield from self._start("call", call_id or "", name or "")
                yield from self._add(arguments)

    def _text(self, kind: BlockKind, text: str) -> Iterator[BlockChange]:
        if not self.blocks or self.blocks[-1].kind != kind:
            yield from self._start(kind)
        yield from self._add(text)

    def _start(self, kind: BlockKind, call_id: str = "", name: str = "") -> Iterator[BlockChange]:
        if self.blocks:
            yield BlockChange("end", self.blocks[-1])
        self.blocks.append(Block(kind, len(self.blocks), call_id, name))
        yield BlockChange("start", self.blocks[-1])

    def _add(self, text: str) -> Iterator[BlockChange]:
        if text:
            self.blocks[-1].text += text
            yield BlockChange("delta", self.blocks[-1], text)

    def _attribute(self, step: TurnStep) -> None:
        """Counts the step's tokens for the last block; those before the first one wait for it."""
        self._num_tokens += len(step.chunk.tokens)
        self._logprobs += step.chunk.logprobs
        if self.blocks:
            self.blocks[-1].num_tokens += self._num_tokens
            self.blocks[-1].logprobs += self._logprobs
            self._num_tokens, self._logprobs = 0, []
