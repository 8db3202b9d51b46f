"""Trains the bundled demo model: a Gemma 3 of about 6M parameters that writes Python.

The corpus is the source of the Python standard library that runs this script, so nothing is
downloaded. Files whose name hashes to 0 mod 32 are held out for validation.

    python scripts/train_demo.py --out pipelines/demo-base --minutes 60
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import platform
import sysconfig
import time
from pathlib import Path

import click
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig, PreTrainedTokenizerFast

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
PAD, EOS, BOS, UNK, START, END = range(6)
VOCAB, CONTEXT, LENGTH = 4096, 1024, 512
CHAT_TEMPLATE = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}\
{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' }}\
{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""


def sources() -> tuple[list[str], list[str]]:
    """Reads the standard library without its tests, as (training, validation) texts."""
    root = Path(sysconfig.get_paths()["stdlib"])
    split: tuple[list[str], list[str]] = ([], [])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "test", "tests", "idle_test", "__pycache__"} & set(parts) or parts[0] == "encodings":
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        if len(text) > 200 and max(map(len, text.splitlines())) < 400:
            held_out = hashlib.sha256("/".join(parts).encode()).digest()[0] % 32 == 0
            split[held_out].append(text)
    return split


def conversations(texts: list[str]) -> list[tuple[str, str]]:
    """Makes (request, answer) pairs: a function's documented purpose, and the function."""
    pairs = []
    for text in texts:
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)):
                code = ast.unparse(node)
                if len(code) < 1200:
                    pairs.append((f"Write a function `{node.name}`: {doc.splitlines()[0]}", code))
    return pairs


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Trains a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str], seed: int) -> np.ndarray:
    """Joins all files and, shuffled among them, all conversations to one array of token ids."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    documents = [[BOS, *ids(text), EOS] for text in texts]
    newline = ids("\n")
    for request, answer in conversations(texts):
        user = [START, *ids("user\n" + request), END, *newline]
        documents.append([BOS, *user, START, *ids("model\n" + answer), END, *newline])
    np.random.default_rng(seed).shuffle(documents)
    return np.concatenate([np.array(d, np.int64) for d in documents])


def model_config() -> Gemma3TextConfig:
    """Configuration of the demo model."""
    return Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=128,
        max_position_embeddings=CONTEXT,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        pad_token_id=PAD,
        eos_token_id=[EOS, END],
        bos_token_id=BOS,
        architectures=["Gemma3ForCausalLM"],
    )


def loss_of(model: Gemma3ForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of a batch's tokens from the second on, in nats."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch[:, :-1]).last_hidden_state
        logits = model.lm_head(hidden)
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model: Gemma3ForCausalLM, stream: np.ndarray, batches: int) -> float:
    """Mean nats per token over consecutive windows of the held-out files."""
    count = min(batches * 8, (len(stream) - 1) // LENGTH)
    rows = torch.from_numpy(np.stack([stream[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(count)]))
    return sum(loss_of(model, part).item() * len(part) for part in rows.split(8)) / count


def optimizers(model: Gemma3ForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimizers with their peak rates: Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=1.0, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [(muon, 4e-3), (torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0), 4e-3)]


def train(model: Gemma3ForCausalLM, stream: np.ndarray, held_out: np.ndarray, minutes: float, batch_rows: int) -> int:
    """Trains until the time is up (warm-up, constant, linear decay over the last 40 %); returns the tokens seen."""
    rng, start, step = np.random.default_rng(0), time.time(), 0
    stages, compiled_loss = optimizers(model), torch.compile(loss_of)
    order: list[int] = []
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        if len(order) < batch_rows:  # a new epoch, cut at another offset
            offset = int(rng.integers(LENGTH))
            order += rng.permutation(range(offset, len(stream) - LENGTH - 1, LENGTH)).tolist()
        batch = torch.from_numpy(np.stack([stream[i : i + LENGTH + 1] for i in order[-batch_rows:]]))
        del order[-batch_rows:]
        loss = compiled_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in stages:
            for group in optimizer.param_groups:
                group["lr"] = peak * min(1.0, (step + 1) / 100, (1 - done) / 0.4)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0:
            tokens, seconds = step * batch_rows * LENGTH, time.time() - start
            held = validation_loss(model, held_out, 2)
            click.echo(
                f"step {step} loss {loss.item():.3f} validation {held:.3f} {tokens / 1e6:.2f}M tokens "
                f"{tokens / seconds:.0f}/s"
            )
    return step * batch_rows * LENGTH


def card(validation: float, characters: float, tokens: int, minutes: float, parameters: int) -> str:
    """Text of the model card."""
    return f"""---
license: psf-2.0
---
# Demo model: Gemma 3 architecture, {parameters / 1e6:.1f}M parameters, writes Python

A base model for completing Python code, with a few short conversations in its training data. It exists so that
the first command works without a network, a licence or a token, and so that tests have real distributions. It
imitates the look of Python; it does not know what it writes.

- **Shape**: 6 layers (two sliding-window to one full), hidden 256, 4 heads on 2 KV heads of 64, MLP 768,
  sliding window 128, context {CONTEXT}, byte-level BPE of {VOCAB} entries, tied head, bfloat16.
- **Data**: the Python {platform.python_version()} standard library without its tests (PSF licence), and pairs of
  docstring and function taken from it. Sequences of {LENGTH} tokens.
- **Training**: `python scripts/train_demo.py --minutes {minutes:g}`: {tokens / 1e6:.1f}M tokens on two CPU cores,
  Muon and AdamW.
- **Validation loss**: {validation:.3f} nats a token ({validation / characters / math.log(2):.3f} bits a byte) on
  held-out files of the library, measured with the saved bfloat16 weights.
"""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("pipelines/demo-base"), show_default=True)
@click.option("--minutes", type=float, default=60, show_default=True)
@click.option("--batch-rows", type=int, default=16, show_default=True, help="Sequences a step.")
@click.option("--threads", type=int, default=2, show_default=True)
def main(out: Path, minutes: float, batch_rows: int, threads: int) -> None:
    """Train the demo model and write its checkpoint."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    texts, held_texts = sources()
    tokenizer = train_tokenizer(texts)
    stream, held_out = token_stream(tokenizer, texts, 0), token_stream(tokenizer, held_texts, 1)
    model = Gemma3ForCausalLM(model_config())
    parameters = sum(p.numel() for p in model.parameters())
    click.echo(f"{parameters / 1e6:.2f}M parameters, {len(stream) / 1e6:.2f}M tokens, {len(held_out)} held out")
    tokens = train(model, stream, held_out, minutes, batch_rows)

    model.to(torch.bfloat16).save_pretrained(out)
    model.to(torch.float32)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(out)
    GenerationConfig(bos_token_id=BOS, eos_token_id=[EOS, END], pad_token_id=PAD).save_pretrained(out)
    validation = validation_loss(model, held_out, 10**6)
    bytes_per_token = sum(len(t.encode()) for t in held_texts) / sum(len(tokenizer.encode(t).ids) for t in held_texts)
    (out / "README.md").write_text(card(validation, bytes_per_token, tokens, minutes, parameters))
    click.echo(json.dumps({"validation_loss": validation, "tokens": tokens, "out": str(out)}))


if __name__ == "__main__":
    main()
