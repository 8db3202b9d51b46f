"""GGUF files of the demo model and of a tiny Qwen 3, by gguf's own reader: benchmarks give them to llama.cpp."""

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


def read(path: Path) -> dict[str, tuple[str, npt.NDArray[np.float32]]]:
    """Type and values of each tensor."""
    tensors = gguf.GGUFReader(path).tensors
    return {each.name: (each.tensor_type.name, dequantize(each)) for each in tensors}


def dequantize(tensor: Any) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return values.reshape(tensor.shape[::-1])


@pytest.mark.parametrize(("encoding", "head", "tolerance"), [("q8_0", None, 0.01), ("q4_0", "q8_0", 0.2)])
def test_matrices_in_blocks(encoding: str, head: str | None, tolerance: float, tmp_path: Path) -> None:
    from gguf_checkpoint import write_gguf

    found = read(write_gguf(DEMO_FOLDER, tmp_path / "demo.gguf", encoding, head))
    ours = {tensor.name: float32(tensor.array()) for tensor in read_tensors(DEMO_FOLDER / "model.safetensors")}
    for name, gguf_name in NAMES.items():
        stored_as, values = found[gguf_name]
        assert values.shape == ours[name].shape
        if ours[name].ndim == 1:
            assert stored_as == "F32" and np.array_equal(values, ours[name] + 1)
        else:
            assert stored_as == ("Q8_0" if name == "model.embed_tokens.weight" else encoding.upper())
            blocks, error = (each.reshape(-1, 32) for each in (ours[name], np.abs(values - ours[name])))
            # Of a block's largest number: half a step of 1/127, or one of 1/8 where the other sign is cut.
            assert (error.max(1) <= tolerance * np.abs(blocks).max(1) + 1e-7).all()


def test_a_qwen_as_gguf(tmp_path: Path) -> None:
    from checkpoints import write_random_checkpoint
    from gguf_checkpoint import pad_tokenizer, write_gguf

    config = json.loads((Path(__file__).parent / "configs/Qwen__Qwen3-0.6B/config.json").read_text())
    config |= {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 5000, "bos_token_id": 2, "eos_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": [5000, 64], "model.norm": [64], "model.layers.0.self_attn.q_norm": [128]}
    shapes |= {"model.layers.0.mlp.down_proj": [64, 3072]}
    tensors = {f"{name}.weight": ("BF16", shape) for name, shape in shapes.items()}
    folder = write_random_checkpoint(tmp_path / "qwen", tmp_path / "config.json", tensors, DEMO_FOLDER)
    pad_tokenizer(folder)
    path = write_gguf(folder, tmp_path / "qwen.gguf", "float32")
    ours = {tensor.name: float32(tensor.array()) for tensor in read_tensors(folder / "model.safetensors")}
    names = {"model.norm": "output_norm", "model.layers.0.self_attn.q_norm": "blk.0.attn_q_norm"}
    for name, gguf_name in names.items():  # nothing is added to these norms
        assert np.array_equal(read(path)[f"{gguf_name}.weight"][1], ours[f"{name}.weight"])
    keys = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    assert keys["general.architecture"] == "qwen3" and keys["qwen3.attention.key_length"] == 128
    assert keys["qwen3.rope.freq_base"] == 1e6 and "qwen3.attention.sliding_window" not in keys
