"""Compares a checkpoint's logits and greedy tokens with those that transformers computes, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.config import PipelineConfig
from pipelines.errors import InputError
from pipelines.load import prepare_pipeline
from pipelines.loading.checkpoint import Checkpoint
from pipelines.quiet import quiet
from pipelines.sampling.params import SamplingParams
from pipelines.stages import NullStages, Stages

if TYPE_CHECKING:
    from pipelines.load import PreparedPipeline
    from pipelines.text_generation import TextGenerationPipeline

Logits = npt.NDArray[np.float32]

NUM_GREEDY = 32
"""New tokens that are compared after each prompt."""
PAGE_TOKENS = 128


@dataclass(frozen=True)
class Comparison:
    """Two models on one prompt.

    max_difference, mean_difference: of the logits, as parts of the largest one. top1_agreement: the part of positions
    with the same likeliest token. kl: the mean divergence of our distributions from theirs, in nats. worst_position:
    where max_difference is. num_same_greedy: how many of the greedy tokens agree before the first that differs, of
    num_greedy.
    """

    num_tokens: int
    max_difference: float
    mean_difference: float
    top1_agreement: float
    kl: float
    worst_position: int
    num_same_greedy: int
    num_greedy: int


def verify(config: PipelineConfig, texts: Sequence[str] = (), stages: Stages | None = None) -> list[Comparison]:
    """Runs both models, one after the other, on texts or else on random tokens of lengths around the window.

    Raises:
        InputError: torch is missing, or something that `load_pipeline` would refuse.
    """
    _require_torch()
    stages = stages or NullStages()
    prepared = prepare_pipeline(config, stages)
    prompts = [prepared.prompts.encode(text).tokens for text in texts] or _random_prompts(prepared)
    with prepared.load() as pipe:
        ours = [_run(pipe, prompt) for prompt in prompts]
    with stages.stage("transformers"):
        reference = load_reference(prepared.checkpoint)
        theirs = [
            _run_reference(reference, prompt, len(greedy)) for prompt, (_, greedy) in zip(prompts, ours, strict=True)
        ]
    return [compare(*our, *their) for our, their in zip(ours, theirs, strict=True)]


def compare(our_logits: Logits, our_greedy: list[int], their_logits: Logits, their_greedy: list[int]) -> Comparison:
    """Of the logits [T, V] of a prompt, and of the tokens that follow it."""
    difference = np.abs(our_logits - their_logits)
    largest = float(np.abs(their_logits).max())
    same = [ours == theirs for ours, theirs in zip(our_greedy, their_greedy, strict=True)]
    return Comparison(
        num_tokens=len(our_logits),
        max_difference=float(difference.max()) / largest,
        mean_difference=float(difference.mean()) / largest,
        top1_agreement=float((our_logits.argmax(-1) == their_logits.argmax(-1)).mean()),
        kl=_kl(their_logits, our_logits),
        worst_position=int(difference.max(-1).argmax()),
        num_same_greedy=same.index(False) if False in same else len(same),
        num_greedy=len(same),
    )


def load_reference(checkpoint: Checkpoint) -> Any:
    """The checkpoint in transformers: float32, eager attention; float8 weights dequantized to bfloat16, as here."""
    import torch
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    is_float8 = "quantization_config" in checkpoint.config
    extra = {"quantization_config": FineGrainedFP8Config(dequantize=True)} if is_float8 else {}
    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint.path,
                dtype=torch.bfloat16 if is_float8 else torch.float32,
                attn_implementation="eager",
                **extra,
            )
        except Exception as error:  # as many kinds as transformers has models
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"transformers can't load '{checkpoint.name}': {reason}") from error
    return model.float().eval()


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise InputError("verify compares with transformers, which needs torch: pip install torch") from None


def _random_prompts(prepared: PreparedPipeline) -> list[list[int]]:
    """Across the sliding window if there is one, and across a page of the cache."""
    windows = [group.window for group in prepared.kv_params.groups if group.window]
    border = min(windows, default=PAGE_TOKENS)
    limit = prepared.prompts.max_length - NUM_GREEDY
    lengths = sorted({min(length, limit) for length in (1, border - 1, border, border + 1, 3 * border)})
    rng, vocab_size = np.random.default_rng(0), prepared.prompts.vocab_size
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


def _run(pipe: TextGenerationPipeline, prompt: list[int]) -> tuple[Logits, list[int]]:
    num_new = min(NUM_GREEDY, pipe.prompts.max_length - len(prompt))
    (logits,) = pipe.logits([prompt])
    greedy = SamplingParams(max_new_tokens=num_new, ignore_eos=True)
    return logits, pipe.generate([prompt], greedy)[0].tokens


def _run_reference(model: Any, prompt: list[int], num_new: int) -> tuple[Logits, list[int]]:
    """Its own `generate` would treat end-of-text tokens in a way of its own."""
    import torch

    with torch.inference_mode():
        output = model(torch.tensor([prompt]), use_cache=True)
        logits = output.logits[0].float().numpy()
        greedy: list[int] = []
        while len(greedy) < num_new:
            if greedy:
                output = model(torch.tensor([greedy[-1:]]), past_key_values=output.past_key_values, use_cache=True)
            greedy.append(int(output.logits[0, -1].argmax()))
    return logits, greedy


def _kl(expected: Logits, actual: Logits) -> float:
    """The mean over the rows of sum p (log p - log q)."""
    log_p, log_q = (_log_softmax(logits) for logits in (expected, actual))
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
