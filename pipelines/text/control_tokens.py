"""The control tokens of a tokenizer, and those among them that frame a turn."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase

FRAME_NAMES = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    *("sot_token", "eot_token"),
    *("boi_token", "image_token", "eoi_token", "boa_token", "audio_token", "eoa_token", "video_token"),
)
"""Names that tokenizer_config.json gives to tokens around a text, around a turn, and around or of an image or sound.

Gemma 4's file also names the markers inside an answer, which don't belong here: soc_token and eoc_token for its
thinking, stc_token, etc_token, str_token and etr_token for tool calls and responses, escape_token, think_token.
"""


def control_tokens(tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int]) -> dict[int, AddedToken]:
    """Added tokens that are special, or that begin, end or pad a text, by their ids.

    The unknown token does not count: it replaces any text that the vocabulary lacks.
    """
    ends = {*eos_token_ids, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    unknown = {tokenizer.unk_token_id} - ends
    return {
        token_id: token
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if (token.special or token_id in ends) and token_id not in unknown and token.content.strip()
    }


def frame_token_ids(
    tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int], rendered_turns: str
) -> frozenset[int]:
    """Tokens that frame a text or a turn rather than mark something inside an answer.

    They end a text, have one of FRAME_NAMES, or are control tokens that the chat template writes around plain text.

    Args:
        tokenizer: The tokenizer.
        eos_token_ids: Tokens that end a text.
        rendered_turns: Turns of plain text as the chat template writes them.
    """
    controls = control_tokens(tokenizer, eos_token_ids)
    written = [token_id for token_id, token in controls.items() if token.content in rendered_turns]
    names = tokenizer.special_tokens_map
    named = [tokenizer.convert_tokens_to_ids(str(names[name])) for name in FRAME_NAMES if name in names]
    return frozenset({*eos_token_ids, *written, *named})
