"""Text to token ids and back, by the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipelines.errors import InputError
from pipelines.quiet import quiet
from pipelines.text.control_tokens import control_tokens, frame_token_ids
from pipelines.text.detokenizer import IncrementalDetokenizer
from pipelines.text.guard import ControlTokenGuard, without_control_tokens
from pipelines.text.length_bound import LengthBound

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase

# What a caller of a chat template may set by name, besides the template's own variables.
_TEMPLATE_OPTIONS = frozenset({"tools", "documents", "add_generation_prompt", "continue_final_message"})
# The question after the answer keeps templates from treating that as the latest, in which they may show thinking.
_TURNS = tuple({"role": role, "content": "a"} for role in ("user", "assistant", "user"))


class TextTokenizer:
    """A transformers tokenizer. eos_token_ids: as the checkpoint's configuration has them; empty: the tokenizer's."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        own = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        self.eos_token_ids: tuple[int, ...] = tuple(eos_token_ids) or own
        self._anchor = self.encode("a", add_special_tokens=False)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, trust_remote_code: bool = False, eos_token_ids: Sequence[int] = ()
    ) -> Self:
        """Reads the tokenizer in a local folder.

        Raises:
            InputError: There is none, or it can't be read.
        """
        if not any(file.name.startswith(("tokenizer", "vocab")) for file in Path(path).glob("*")):
            raise InputError(f"{path} has no tokenizer: put its tokenizer.json there")
        with quiet():
            from transformers import AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    str(path), trust_remote_code=trust_remote_code, local_files_only=True
                )
            except Exception as error:  # the readers of its files have no class of errors in common
                reason = str(error).strip().split("\n")[0]
                raise InputError(f"{path} has a tokenizer that can't be read: {reason}") from error
        return cls(tokenizer, eos_token_ids)

    @property
    def has_chat_template(self) -> bool:
        """Whether it can render chats."""
        return bool(self._tokenizer.chat_template)

    @property
    def vocab_size(self) -> int:
        """Number of ids, those of added tokens included."""
        return len(self._tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Converts a text to ids, with the special tokens that the tokenizer puts around one.

        Control tokens that the text spells become control tokens.

        Raises:
            InputError: The text has half of a surrogate pair and can't be written as bytes.
        """
        _check_unicode(text)
        # verbose=False: no warning about lengths, which the model's limit decides and not the tokenizer's.
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))

    def min_num_tokens(self, text: str) -> int:
        """Finds a lower bound of the number of tokens of a text without tokenizing it; 0 where none is known."""
        return 0 if self._length_bound is None else self._length_bound.min_num_tokens(text)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, allow_control_tokens: bool = False, **template_kwargs: Any
    ) -> list[int]:
        """Converts a conversation in the model's chat template to ids, up to where the model's answer begins.

        Users can't forge control tokens: those that their strings spell are encoded as plain text.

        - Control tokens are the special ones among the added tokens, and those that begin, end or pad a text. Other
          added tokens, such as Qwen 3's `<think>`, for which templates look, are recognized everywhere.
        - Users' are all strings of a message whose role is not `assistant` (system text and tool results too), the
          `tool_responses` of one whose role is, and all strings of template_kwargs.
        - Messages of the role `assistant` are taken as the model wrote them.

        Args:
            messages: Each with its role and content.
            allow_control_tokens: Whether control tokens count wherever they are spelled.
            template_kwargs: The template's variables, such as `enable_thinking`, and `tools`, `documents`,
                `add_generation_prompt`, `continue_final_message`.

        Raises:
            InputError: There is no template, or it refuses the messages, or an argument is none of the template's.
        """
        guard = ControlTokenGuard({}) if allow_control_tokens else self.guard()
        rendered = self.render_chat(messages, guard, **template_kwargs)
        return self.encode_stretches(guard.stretches(rendered), guard)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], guard: ControlTokenGuard | None = None, **template_kwargs: Any
    ) -> str:
        """Renders a conversation as `encode_chat` does; guard: puts its stand-ins where users spell control tokens."""
        if not self.has_chat_template:
            raise InputError("the model has no chat template: give plain text")
        own_arguments = inspect.signature(self._tokenizer.apply_chat_template).parameters
        if taken := sorted(template_kwargs.keys() & own_arguments.keys() - _TEMPLATE_OPTIONS):
            raise InputError(f"{taken[0]} is not an argument of a chat template: leave it out")
        options = {"add_generation_prompt": not template_kwargs.get("continue_final_message", False), **template_kwargs}
        try:
            if guard is not None:
                messages, options = guard.hide_messages(messages), guard.hide(options)
            rendered = self._tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, **options)
        except Exception as error:  # a template is a program: on messages it wasn't written for it fails in any way
            raise InputError(f"the model's chat template can't take these messages: {error}") from error
        return str(rendered)

    def guard(self, image_tokens: Sequence[str] = (), exempt: str = "") -> ControlTokenGuard:
        """Makes what keeps the users of one chat from forging control tokens, and these image tokens."""
        images = dict(self._added_tokens[name] for name in image_tokens if name in self._added_tokens)
        return ControlTokenGuard({**self._control_tokens, **images}, image_tokens, exempt)

    def encode_stretches(self, stretches: Sequence[tuple[str, bool]], guard: ControlTokenGuard) -> list[int]:
        """Converts to ids what the guard gave for a rendered chat."""
        token_ids = []
        for text, is_spelled in stretches:
            if is_spelled:
                _check_unicode(text)
                token_ids += guard.encode_spelled(text, self._encode_as_text)
            else:  # without special tokens around it: the template writes them itself
                token_ids += self.encode(text, add_special_tokens=False)
        return token_ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Converts ids to text with its spaces as they are.

        skip_special_tokens: leaves out the tokens that frame a text or a turn: those that begin, end or pad one, that
        the chat template writes around a turn, that stand for images or unknown text. The markers inside an answer
        stay, as Gemma 4's of its thinking and its tool calls, which transformers would drop.
        """
        frames = self._frame_token_ids if skip_special_tokens else frozenset[int]()
        shown = [token_id for token_id in token_ids if token_id not in frames]
        return str(self._tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def detokenizer(self, skip_special_tokens: bool = True) -> IncrementalDetokenizer:
        """Makes the decoder of one request, whose tokens come one by one."""
        return IncrementalDetokenizer(partial(self.decode, skip_special_tokens=skip_special_tokens), self._anchor)

    @cached_property
    def _length_bound(self) -> LengthBound | None:
        return LengthBound.of(self._tokenizer.backend_tokenizer) if self._tokenizer.is_fast else None

    @cached_property
    def _added_tokens(self) -> dict[str, tuple[int, AddedToken]]:
        return {token.content: (token_id, token) for token_id, token in self._tokenizer.added_tokens_decoder.items()}

    @cached_property
    def _control_tokens(self) -> dict[int, AddedToken]:
        return control_tokens(self._tokenizer, self.eos_token_ids)

    @cached_property
    def _frame_token_ids(self) -> frozenset[int]:
        try:
            turns = self.render_chat(_TURNS, add_generation_prompt=False)
        except InputError:  # there is no template, or it was written for something else
            turns = ""
        return frame_token_ids(self._tokenizer, self.eos_token_ids, turns)

    @cached_property
    def _encode_as_text(self) -> Callable[[str], list[int]]:
        """Encodes text in a chat without recognizing control tokens."""
        if not self._tokenizer.is_fast:
            return partial(self._tokenizer.encode, add_special_tokens=False, split_special_tokens=True, verbose=False)
        plain = without_control_tokens(self._tokenizer.backend_tokenizer, self._control_tokens)
        return lambda text: list(plain.encode(text, add_special_tokens=False).ids)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not valid Unicode at character {error.start}: remove it") from error
