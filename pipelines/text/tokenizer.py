"""Text to token ids and back, by the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipelines.errors import InputError
from pipelines.quiet import quiet
from pipelines.text.detokenizer import IncrementalDetokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a caller of a chat template may set by name, besides the template's own variables.
_TEMPLATE_OPTIONS = frozenset({"tools", "documents", "add_generation_prompt", "continue_final_message"})


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
        """The tokenizer in a local folder.

        Raises:
            InputError: there is none, or it can't be read.
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
        return bool(self._tokenizer.chat_template)

    @property
    def vocab_size(self) -> int:
        """Number of ids, those of added tokens included."""
        return len(self._tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text, with the special tokens that the tokenizer puts around one.

        Raises:
            InputError: the text has half of a surrogate pair and can't be written as bytes.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not valid Unicode at character {error.start}: remove it") from error
        # verbose=False: no warning about lengths, which the model's limit decides and not the tokenizer's.
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> list[int]:
        """The ids of a conversation in the model's chat template, up to where the model's answer begins.

        template_kwargs: the template's variables, such as `enable_thinking`, and `tools`, `documents`,
        `add_generation_prompt`, `continue_final_message`.

        Raises:
            InputError: there is no template, or it refuses the messages, or an argument is none of the template's.
        """
        # The template writes the special tokens itself.
        return self.encode(self.render_chat(messages, **template_kwargs), add_special_tokens=False)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> str:
        """As `encode_chat`, the text."""
        if not self.has_chat_template:
            raise InputError("the model has no chat template: give plain text")
        own_arguments = inspect.signature(self._tokenizer.apply_chat_template).parameters
        if taken := sorted(template_kwargs.keys() & own_arguments.keys() - _TEMPLATE_OPTIONS):
            raise InputError(f"{taken[0]} is not an argument of a chat template: leave it out")
        options = {"add_generation_prompt": not template_kwargs.get("continue_final_message", False), **template_kwargs}
        try:
            rendered = self._tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, **options)
        except Exception as error:  # a template is a program: on messages it wasn't written for it fails in any way
            raise InputError(f"the model's chat template can't take these messages: {error}") from error
        return str(rendered)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, without special tokens and with its spaces as they are."""
        return str(
            self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def detokenizer(self) -> IncrementalDetokenizer:
        """For the text of one request, as its tokens come."""
        return IncrementalDetokenizer(self.decode, self._anchor)
