"""The items of a response, from the blocks of its answer, and the events that tell of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.serve.blocks import Block, BlockChange
from pipelines.serve.log_probs import ChatTokenLogProb
from pipelines.serve.responses.events import EventLog
from pipelines.serve.responses.output import (
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    ReasoningItem,
    ReasoningPart,
    TextPart,
    token_log_probs,
)
from pipelines.serve.token_texts import TokenTexts

_ID_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}
_EVENTS = {
    "reasoning": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
}


def new_id(prefix: str) -> str:
    """Makes an id that nothing else has."""
    return f"{prefix}_{uuid.uuid4().hex}"


class ItemWriter:
    """Writes the items of one response.

    log: of its events. texts: of the tokens, for log probabilities; None: there are none.
    """

    def __init__(self, log: EventLog, texts: TokenTexts | None) -> None:
        self._log, self._texts = log, texts
        self._ids: dict[Block, str] = {}
        self._num_told = 0  # log probabilities of the last block that events have told

    def item(self, block: Block, status: ItemStatus) -> OutputItem:
        """The item of a block; it has its text unless it has only begun."""
        item_id = self._ids.setdefault(block, new_id(_ID_PREFIXES[block.kind]))
        if block.kind == "call":
            return FunctionCallItem(
                id=item_id,
                type="function_call",
                status=status,
                call_id=block.call_id,
                name=block.name,
                arguments="" if status == "in_progress" else block.text,
            )
        parts: list[Any] = [] if status == "in_progress" else [self._part(block)]
        if block.kind == "reasoning":
            return ReasoningItem(id=item_id, type="reasoning", status=status, summary=[], content=parts)
        return MessageItem(id=item_id, type="message", status=status, role="assistant", content=parts)

    def events(self, change: BlockChange) -> Iterator[str]:
        """The events of a change."""
        block = change.block
        match change.kind:
            case "start":
                self._num_told = 0
                item = self.item(block, "in_progress")
                yield self._log.write("response.output_item.added", output_index=block.index, item=item)
                if block.kind != "call":
                    yield self._write("response.content_part.added", block, part=self._part(Block(block.kind, 0)))
            case "delta":
                yield self._delta(block, change.text)
            case "end":
                if self._texts is not None and block.kind == "text" and self._num_told < len(block.logprobs):
                    yield self._delta(block, "")
                yield from self._done(block)
                item = self.item(block, "incomplete" if block.is_cut else "completed")
                yield self._log.write("response.output_item.done", output_index=block.index, item=item)

    def _delta(self, block: Block, text: str) -> str:
        fields: dict[str, Any] = {"delta": text}
        if block.kind == "text":
            fields["logprobs"] = self._log_probs(block.logprobs[self._num_told :])
            self._num_told = len(block.logprobs)
        return self._write(f"{_EVENTS[block.kind]}.delta", block, **fields)

    def _done(self, block: Block) -> Iterator[str]:
        kind = f"{_EVENTS[block.kind]}.done"
        if block.kind == "call":
            yield self._write(kind, block, name=block.name, arguments=block.text)
            return
        logprobs = {"logprobs": self._log_probs(block.logprobs)} if block.kind == "text" else {}
        yield self._write(kind, block, text=block.text, **logprobs)
        yield self._write("response.content_part.done", block, part=self._part(block))

    def _write(self, kind: str, block: Block, **fields: Any) -> str:
        place: dict[str, Any] = {"item_id": self._ids[block], "output_index": block.index}
        if block.kind != "call":
            place["content_index"] = 0
        return self._log.write(kind, **place, **fields)

    def _part(self, block: Block) -> TextPart | ReasoningPart:
        if block.kind == "reasoning":
            return ReasoningPart(type="reasoning_text", text=block.text)
        logprobs = self._log_probs(block.logprobs)
        return TextPart(type="output_text", text=block.text, annotations=[], logprobs=logprobs)

    def _log_probs(self, entries: Sequence[TokenLogProbs]) -> list[ChatTokenLogProb]:
        return [] if self._texts is None else token_log_probs(entries, self._texts)
