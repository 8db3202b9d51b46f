"""The reference: a checkpoint in transformers, in float32 and in float64. Needs torch; only `verify` imports it.

Legend: T positions of a prompt, t of a part of it, D hidden, V vocab.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from pipelines.commands.verify_weights import load_weights
from pipelines.errors import InputError
from pipelines.loading.checkpoint import Checkpoint
from pipelines.loading.encodings import encoding
from pipelines.quiet import quiet

if TYPE_CHECKING:
    from pipelines.load import PreparedPipeline

CHUNK_TOKENS = 512
"""Tokens of one forward pass: masks and scores take memory in proportion to it times the length of the prompt."""


class InFloat64(TorchFunctionMode):
    """Computes a float32 model in float64 while it is active.

    Weights are widened where they are used, so that no wide copy is kept, and the casts to float32 in the models' norms
    and softmaxes are left out. Float32 tensors that meet no activation stay as they are: RoPE's angles and tables are
    float32 by definition, since other angles would be another model.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.embedding:
            return func(*args, **kwargs).double()
        if not any(_has_dtype(leaf, torch.float64) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func is torch.Tensor.float:
            return args[0]
        args, kwargs = tree_map(_widened, (args, kwargs))
        return func(*args, **kwargs)


@dataclass(frozen=True)
class ReferenceRun:
    """The results of a prompt's forward passes.

    states32, states64 [T, D]: the last hidden states. greedy: the tokens that float64 chooses after the prompt, up to
    the first one where float32 chooses another. num_same_float32: the number of them that float32 chooses too.
    """

    states32: torch.Tensor
    states64: torch.Tensor
    greedy: list[int]
    num_same_float32: int


class Reference:
    """A causal language model of transformers with float32 weights, as its layers and its head."""

    def __init__(self, model: Any) -> None:
        self._layers = model.base_model
        self._head = _Head(model)

    @torch.inference_mode()
    def run(self, prompt: Sequence[int], num_new: int) -> ReferenceRun:
        """Computes the hidden states of a prompt, and up to `num_new` greedy tokens after it.

        Float32 generates tokens; float64 reads them in one pass and makes its own choice at each.
        """
        states32, generated = self._generate(prompt, num_new)
        with InFloat64():
            states64, _ = self._forward([*prompt, *generated[:-1]])
            choices = self._head(states64[len(prompt) - 1 :]).argmax(-1).tolist()[:num_new]
        pairs = zip(choices, generated, strict=True)
        num_same = next((i for i, (choice, token) in enumerate(pairs) if choice != token), len(choices))
        return ReferenceRun(states32, states64[: len(prompt)], choices[: num_same + 1], num_same)

    def into_head(self) -> ReferenceHead:
        """Frees the layers and returns the head. The reference can't run afterwards."""
        del self._layers
        return ReferenceHead(self._head)

    def _generate(self, prompt: Sequence[int], num_new: int) -> tuple[torch.Tensor, list[int]]:
        """Generates greedy tokens, without the model's `generate`, which handles end-of-text tokens in its own way."""
        prompt_states, cache = self._forward(prompt)
        states, tokens = prompt_states, list[int]()
        while len(tokens) < num_new:
            if tokens:
                states, cache = self._forward(tokens[-1:], cache)
            tokens.append(int(self._head(states[-1:]).argmax()))
        return prompt_states, tokens

    def _forward(self, tokens: Sequence[int], cache: Any = None) -> tuple[torch.Tensor, Any]:
        """Returns the last hidden states [T, D] and the cache, which holds these tokens too."""
        states = []
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = torch.tensor([tokens[start : start + CHUNK_TOKENS]])
            output = self._layers(input_ids=chunk, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            states.append(output.last_hidden_state[0])
            self._head.output_type = type(output)
        return torch.cat(states), cache


class ReferenceHead:
    """The head of a model in both precisions."""

    def __init__(self, head: _Head) -> None:
        self._head32, self._head64 = head, head.in_float64()

    @torch.inference_mode()
    def logits(
        self, run: ReferenceRun, start: int, end: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Logits [t, V] of the positions from `start` up to `end`, in float32 and in float64."""
        logits32 = self._head32(run.states32[start:end]).numpy()
        with InFloat64():
            logits64 = self._head64(run.states64[start:end])
        return logits32, logits64.numpy()


class _Head:
    """The part of a model from hidden states to logits: its own forward pass, over layers that return stored states.

    Some models cap or scale their logits there. output_type: the type of the layers' output.
    """

    output_type: type[Any]

    def __init__(self, model: Any) -> None:
        self.model, self.layers = model, _StoredStates()
        setattr(model, model.base_model_prefix, self.layers)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        self.layers.output = self.output_type(last_hidden_state=states[None])
        try:
            input_ids = torch.zeros(1, len(states), dtype=torch.long)
            return self.model(input_ids=input_ids).logits[0]
        finally:
            self.layers.output = None

    def in_float64(self) -> _Head:
        """Returns a copy with float64 weights."""
        head = copy.deepcopy(self)
        head.model.double()
        return head


class _StoredStates(torch.nn.Module):
    """Stands for a model's layers and returns an output that was stored before."""

    output: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the stored output."""
        return self.output


def load_reference(prepared: PreparedPipeline) -> Reference:
    """Loads the checkpoint into transformers, with float32 weights: those in blocks dequantized, as the run has them.

    Raises:
        InputError: transformers can't load it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    checkpoint = prepared.checkpoint
    if checkpoint.gguf is None and not encoding(prepared.config.quantization_encoding).has_blocks:
        return Reference(_from_checkpoint(checkpoint).float().eval())
    with quiet():
        model = AutoModelForCausalLM.from_config(
            checkpoint.huggingface_config, dtype=torch.float32, experts_implementation="eager"
        )
    load_weights(model, prepared)
    return Reference(model.eval())


def _from_checkpoint(checkpoint: Checkpoint) -> Any:
    """Loads a checkpoint with transformers; float8 weights are made bfloat16, as here."""
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    is_float8 = "quantization_config" in checkpoint.config
    extra = {"quantization_config": FineGrainedFP8Config(dequantize=True)} if is_float8 else {}
    with quiet():
        try:
            return AutoModelForCausalLM.from_pretrained(
                checkpoint.path,
                dtype=torch.bfloat16 if is_float8 else torch.float32,
                experts_implementation="eager",  # the others have no float64
                **extra,
            )
        except Exception as error:  # transformers' models raise errors of many types
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"transformers can't load '{checkpoint.name}': {reason}") from error


def _has_dtype(leaf: Any, dtype: torch.dtype) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dtype == dtype


def _widened(leaf: Any) -> Any:
    if leaf is torch.float32:
        return torch.float64
    return leaf.double() if _has_dtype(leaf, torch.float32) else leaf
