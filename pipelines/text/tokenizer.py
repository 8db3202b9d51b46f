"""The checkpoint's own tokenizer and chat template."""

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

# Arguments of a chat template that callers may set, besides the template's own variables.
_TEMPLATE_OPTIONS = frozenset({"tools", "documents", "add_generation_prompt", "continue_final_message"})
# The question after the answer keeps templates from treating it as the latest answer, in which they may show thinking.
_TURNS = tuple({"role": role, "content": "a"} for role in ("user", "assistant", "user"))


class TextTokenizer:
    """A transformers tokenizer. eos_token_ids: those of the checkpoint's configuration; empty: the tokenizer's."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        own = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        self.eos_token_ids: tuple[int, ...] = tuple(eos_token_ids) or own
        self._anchor = self.encode("a", add_special_tokens=False)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        trust_remote_code: bool = False,
        eos_token_ids: Sequence[int] = (),
        chat_template: str | None = None,
    ) -> Self:
        """Reads the tokenizer in a local folder.

        Args:
            path: The folder.
            trust_remote_code: Whether Python code in it may run.
            eos_token_ids: As for the class.
            chat_template: Replaces the chat template of the folder.

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
            except Exception as error:  # errors of the readers of its files have no common class
                reason = str(error).strip().split("\n")[0]
                raise InputError(f"{path} has a tokenizer that can't be read: {reason}") from error
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        return cls(tokenizer, eos_token_ids)

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self._tokenizer.chat_template)

    @property
    def class_name(self) -> str:
        """The name of its class in transformers."""
        return type(self._tokenizer).__name__

    @property
    def special_tokens(self) -> dict[str, str]:
        """Spellings of the special tokens that have a name, by their names, such as `eos_token`."""
        return {name: token for name, token in self._tokenizer.special_tokens_map.items() if isinstance(token, str)}

    @property
    def vocab_size(self) -> int:
        """Number of ids, those of added tokens included."""
        return len(self._tokenizer)

    @property
    def chat_template(self) -> str:
        """The chat template; of several, which tokenizers may have, all of them; empty if there is none."""
        template = self._tokenizer.chat_template or ""
        return template if isinstance(template, str) else "\n".join(map(str, dict(template).values()))

    def to_json(self) -> str:
        """The tokenizer as the text of its tokenizer.json.

        Raises:
            InputError: It is none of the tokenizers library.
        """
        if not self._tokenizer.is_fast:
            raise InputError("answers can't be held to a grammar with this tokenizer: it has no tokenizer.json")
        return str(self._tokenizer.backend_tokenizer.to_str())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Converts a text to ids, with the special tokens that the tokenizer puts around it.

        Control tokens that the text spells become control tokens.

        Raises:
            InputError: The text has half of a surrogate pair and can't be written as bytes.
        """
        _check_unicode(text)
        # verbose=False: no warning about the tokenizer's own limit of lengths, which does not matter here.
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))

    def min_num_tokens(self, text: str) -> int:
        """Computes a lower bound of the number of tokens of a text without tokenizing it; 0 if none is known."""
        return 0 if self._length_bound is None else self._length_bound.min_num_tokens(text)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, allow_control_tokens: bool = False, **template_kwargs: Any
    ) -> list[int]:
        """Converts a conversation in the model's chat template to ids, up to the start of the model's answer.

        Users can't forge control tokens: those that their strings spell are encoded as plain text.

        - Control tokens are the special ones among the added tokens, and those that begin, end or pad a text. Other
          added tokens, such as Qwen 3's `<think>`, for which templates look, are recognized everywhere.
        - Strings of users are those of a message whose role is not `assistant` (system text and tool results too), the
          `tool_calls` and `tool_responses` of one whose role is, and those of template_kwargs.
        - Other strings of messages of the role `assistant` are taken as the model wrote them.

        Args:
            messages: Messages with role and content.
            allow_control_tokens: Whether control tokens count wherever they are spelled.
            **template_kwargs: The template's variables, such as `enable_thinking`, and `tools`, `documents`,
                `add_generation_prompt`, `continue_final_message`.

        Raises:
            InputError: There is no template, it refuses the messages, or an argument is none of the template's.
        """
        guard = ControlTokenGuard({}) if allow_control_tokens else self.guard()
        rendered = self.render_chat(messages, guard, **template_kwargs)
        return self.encode_stretches(guard.stretches(rendered), guard)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], guard: ControlTokenGuard | None = None, **template_kwargs: Any
    ) -> str:
        """Renders a conversation as `encode_chat` does.

        Args:
            messages: Messages with role and content.
            guard: Replaces control tokens that users spell by stand-ins; None: they are left as they are.
            **template_kwargs: As for `encode_chat`.

        Raises:
            InputError: As `encode_chat`.
        """
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
        except Exception as error:  # a template is a program, which may fail in any way on unforeseen messages
            raise InputError(f"the model's chat template can't take these messages: {error}") from error
        return str(rendered)

    def guard(self, image_tokens: Sequence[str] = (), exempt: str = "") -> ControlTokenGuard:
        """Makes a guard that keeps the users of one chat from forging control tokens, and these image tokens.

        Args:
            image_tokens: Spellings of tokens of images.
            exempt: A spelling that users may write.
        """
        images = dict(self._added_tokens[name] for name in image_tokens if name in self._added_tokens)
        return ControlTokenGuard({**self._control_tokens, **images}, image_tokens, exempt)

    def encode_stretches(self, stretches: Sequence[tuple[str, bool]], guard: ControlTokenGuard) -> list[int]:
        """Converts a rendered chat to ids, from the stretches into which the guard cut it."""
        token_ids = []
        for text, is_spelled in stretches:
            if is_spelled:
                _check_unicode(text)
                token_ids += guard.encode_spelled(text, self._encode_as_text)
            else:  # without special tokens around it: the template writes them itself
                token_ids += self.encode(text, add_special_tokens=False)
        return token_ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Converts ids to text, with its spaces unchanged.

        Args:
            token_ids: The tokens.
            skip_special_tokens: Whether to leave out the tokens that frame a text or a turn: those that begin, end or
                pad one, that the chat template writes around a turn, that stand for images or unknown text. Markers
                inside an answer stay, such as Gemma 4's of thinking and tool calls, which transformers would drop.
        """
        frames = self._frame_token_ids if skip_special_tokens else frozenset[int]()
        shown = [token_id for token_id in token_ids if token_id not in frames]
        return self._decode(shown)

    def detokenizer(self, skip_special_tokens: bool = True) -> IncrementalDetokenizer:
        """Makes a decoder for the tokens of one request, which are added one by one."""
        return IncrementalDetokenizer(partial(self.decode, skip_special_tokens=skip_special_tokens), self._anchor)

    @cached_property
    def _decode(self) -> Callable[[list[int]], str]:
        """The decoder of ids: the backend's own, unless the tokenizer has another; transformers adds checks to it."""
        from transformers import PreTrainedTokenizerFast

        tokenizer = self._tokenizer
        if tokenizer.is_fast and type(tokenizer)._decode is PreTrainedTokenizerFast._decode:
            return partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=False)
        return partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)

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
