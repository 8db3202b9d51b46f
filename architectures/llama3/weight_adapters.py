"""Llama 3 tensors of GGUF files -> graph weights."""

from __future__ import annotations

import re
from typing import Any

from architectures.decoder.gguf_weight_adapters import adapt_gguf_text, unpermuted
from architectures.decoder.weight_adapters import StateDict

ROTATED = re.compile(r"layers\.\d+\.self_attn\.(?P<part>[qk])_proj\.(weight|bias)")


def adapt_gguf(tensors: StateDict, huggingface_config: Any) -> StateDict:
    """Adapts the tensors of a GGUF file, in which queries and keys have another order of rows."""
    text = huggingface_config.get_text_config()
    num_heads = {"q": text.num_attention_heads, "k": text.num_key_value_heads}
    return {
        name: unpermuted(data, num_heads[match["part"]]) if (match := ROTATED.fullmatch(name)) else data
        for name, data in adapt_gguf_text(tensors, huggingface_config).items()
    }
