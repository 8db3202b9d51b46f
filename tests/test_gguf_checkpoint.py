"""The GGUF file of the demo model, by gguf's own reader: benchmarks/serve.py gives it to llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.loading.checkpoint import DEMO_FOLDER
from pipelines.loading.safetensors_file import read_tensors

gguf = pytest.importorskip("gguf")

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.layers.4.input_layernorm.weight": "blk.4.attn_norm.weight",
    "model.layers.4.self_attn.q_proj.weight": "blk.4.attn_q.weight",
    "model.layers.4.self_attn.k_norm.weight": "blk.4.attn_k_norm.weight",
    "model.layers.4.self_attn.o_proj.weight": "blk.4.attn_output.weight",
    "model.layers.4.post_attention_layernorm.weight": "blk.4.post_attention_norm.weight",
    "model.layers.4.pre_feedforward_layernorm.weight": "blk.4.ffn_norm.weight",
    "model.layers.4.mlp.down_proj.weight": "blk.4.ffn_down.weight",
    "model.layers.4.post_feedforward_layernorm.weight": "blk.4.post_ffw_norm.weight",
}


def float32(bits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("encoding", ["float32", "bfloat16"])
def test_the_demo_as_gguf(encoding: str, tmp_path: Path) -> None:
    from gguf_checkpoint import write_gguf

    reader = gguf.GGUFReader(write_gguf(DEMO_FOLDER, tmp_path / "demo.gguf", encoding))
    ours = {tensor.name: float32(tensor.array()) for tensor in read_tensors(DEMO_FOLDER / "model.safetensors")}
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    assert len(theirs) == len(ours)
    for name, gguf_name in NAMES.items():
        tensor = theirs[gguf_name]
        is_norm = ours[name].ndim == 1
        assert tensor.tensor_type.name == ("F32" if is_norm or encoding == "float32" else "BF16")
        values = (
            tensor.data.view(np.float32) if is_norm or encoding == "float32" else float32(tensor.data.view(np.uint16))
        )
        assert np.array_equal(values, ours[name] + 1 if is_norm else ours[name])


def test_the_keys_and_the_tokenizer_of_the_demo(tmp_path: Path) -> None:
    from gguf_checkpoint import write_gguf

    reader = gguf.GGUFReader(write_gguf(DEMO_FOLDER, tmp_path / "demo.gguf", "float32"))
    keys = {name: field.contents() for name, field in reader.fields.items()}
    assert keys["general.architecture"] == "gemma3"
    expected = {
        "block_count": 6,
        "embedding_length": 256,
        "feed_forward_length": 768,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 64,
        "attention.sliding_window": 128,
        "attention.sliding_window_pattern": 3,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
    }
    assert {name: keys[f"gemma3.{name}"] for name in expected} == expected
    model = json.loads((DEMO_FOLDER / "tokenizer.json").read_text())["model"]
    assert keys["tokenizer.ggml.tokens"] == sorted(model["vocab"], key=model["vocab"].__getitem__)
    assert keys["tokenizer.ggml.merges"] == [" ".join(merge) for merge in model["merges"]]
    assert keys["tokenizer.ggml.token_type"][:8] == [3, 3, 3, 3, 3, 3, 1, 1]
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]) == (2, 1)


def test_a_tokenizer_with_an_entry_for_each_row(tmp_path: Path) -> None:
    from gguf_checkpoint import pad_tokenizer

    (tmp_path / "config.json").write_text('{"vocab_size": 5000}')
    (tmp_path / "tokenizer.json").write_text((DEMO_FOLDER / "tokenizer.json").read_text())
    pad_tokenizer(tmp_path)
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(5000))
    assert vocab["<unused4999>"] == 4999
