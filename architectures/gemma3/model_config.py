"""Gemma 3 text models, 270M to 27B: what the graph needs to know.

Source: transformers' configuration_gemma3.py, whose names these are.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph import DeviceRef
from max.graph.weights import WeightData

from architectures.layers.attention import MIN_CPU_WINDOW
from architectures.layers.mlp import ACTIVATIONS
from architectures.layers.rope import RopeParameters
from kv_cache import KVCacheParams, PageGroup
from pipelines.checkpoint import resolve_config
from pipelines.config import PipelineConfig
from pipelines.pipeline_model import ReturnLogits
from pipelines.weights import same_values

SLIDING, FULL = "sliding_attention", "full_attention"
DTYPES = {"float32": DType.float32, "bfloat16": DType.bfloat16}
ENCODINGS = {"cpu": ("float32",), "gpu": ("bfloat16", "float32")}
"""What each kind of device runs, the default first."""


@dataclass
class Gemma3Config:
    """One Gemma 3 text model on the devices of one run.

    layer_types: SLIDING or FULL for each layer. rope_parameters: by layer type. dtype: of weights and activations.
    `return_logits` and `tie_word_embeddings` are None until `finalize`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_activation: str
    rms_norm_eps: float
    attention_bias: bool
    query_pre_attn_scalar: float
    sliding_window: int
    layer_types: tuple[str, ...]
    rope_parameters: Mapping[str, RopeParameters]
    final_logit_softcapping: float | None
    dtype: DType
    devices: tuple[DeviceRef, ...]
    return_logits: ReturnLogits | None = None
    tie_word_embeddings: bool | None = None

    @classmethod
    def initialize(cls, pipeline_config: PipelineConfig, model_config: Any | None = None) -> Self:
        if model_config is None:
            run = pipeline_config
            model_config = resolve_config(run.model, run.revision, run.trust_remote_code).huggingface_config
        return cls.initialize_from_config(pipeline_config, model_config)

    @classmethod
    def initialize_from_config(cls, pipeline_config: PipelineConfig, huggingface_config: Any) -> Self:
        """From a Gemma3Config or Gemma3TextConfig of transformers.

        Raises:
            ValueError: A value that the graph can't honour, naming field and value.
        """
        text = huggingface_config.get_text_config()
        devices = tuple(pipeline_config.device_refs)
        _refuse_what_is_not_built(text, devices)
        return cls(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            hidden_activation=text.hidden_activation,
            rms_norm_eps=text.rms_norm_eps,
            attention_bias=text.attention_bias,
            query_pre_attn_scalar=text.query_pre_attn_scalar,
            sliding_window=text.sliding_window,
            layer_types=tuple(text.layer_types),
            rope_parameters={
                kind: RopeParameters.from_huggingface(text.rope_parameters[kind], f"rope_parameters.{kind}")
                for kind in dict.fromkeys(text.layer_types)
            },
            final_logit_softcapping=text.final_logit_softcapping,
            dtype=_dtype(pipeline_config),
            devices=devices,
        )

    def finalize(
        self,
        huggingface_config: Any,
        state_dict: MutableMapping[str, WeightData],
        return_logits: ReturnLogits,
        quant_config: Any | None = None,
    ) -> None:
        """Settles which logits are returned and whether the head is the embedding.

        As in transformers, a stored head that differs from the embedding counts, even where config.json ties them.
        One that does not differ is taken out of the state dict.

        Raises:
            ValueError: A quantized checkpoint.
        """
        if quant_config is not None:
            raise ValueError(f"quantization_config {quant_config!r} is not supported for Gemma 3")
        head, embedding = state_dict.get("lm_head.weight"), state_dict.get("embed_tokens.weight")
        tied = bool(huggingface_config.get_text_config().tie_word_embeddings)
        self.tie_word_embeddings = tied and (head is None or embedding is None or same_values(head, embedding))
        if self.tie_word_embeddings:
            state_dict.pop("lm_head.weight", None)
        self.return_logits = return_logits

    @property
    def rope_dims(self) -> dict[str, int]:
        """The width of each layer type's RoPE table."""
        return dict.fromkeys(self.rope_parameters, self.head_dim)

    def rope_tables(self, num_positions: int) -> dict[str, npt.NDArray[np.float32]]:
        """[num_positions, head_dim] for each layer type."""
        return {kind: rope.table(num_positions, self.head_dim) for kind, rope in self.rope_parameters.items()}

    @staticmethod
    def get_num_layers(huggingface_config: Any) -> int:
        return int(huggingface_config.get_text_config().num_hidden_layers)

    def get_kv_params(self) -> KVCacheParams:
        """One page group for each kind of layer that the model has."""
        return KVCacheParams(
            tuple(
                PageGroup(
                    name=kind,
                    num_layers=self.layer_types.count(kind),
                    num_kv_heads=self.num_key_value_heads,
                    head_dim=self.head_dim,
                    dtype=self.dtype,
                    devices=self.devices,
                    window=self.sliding_window if kind == SLIDING else None,
                )
                for kind in dict.fromkeys(self.layer_types)
            )
        )


def _dtype(run: PipelineConfig) -> DType:
    """Of the encoding that the run asks for.

    Raises:
        ValueError: The device does not run it.
    """
    choices = ENCODINGS[run.device_kind]
    encoding = choices[0] if run.quantization_encoding == "auto" else run.quantization_encoding
    if encoding not in choices:
        raise ValueError(
            f"quantization_encoding {encoding!r} does not run on {run.device_kind} ({', '.join(choices)} do)"
        )
    return DTYPES[encoding]


def _refuse_what_is_not_built(text: Any, devices: tuple[DeviceRef, ...]) -> None:
    """Raises ValueError, naming field and value, for what the graph would silently ignore."""
    if text.attn_logit_softcapping is not None:
        raise ValueError(f"attn_logit_softcapping {text.attn_logit_softcapping} is not supported (null is)")
    if text.use_bidirectional_attention:
        raise ValueError("use_bidirectional_attention true is not supported (false is): it is an embedding model")
    if text.hidden_activation not in ACTIVATIONS:
        raise ValueError(
            f"hidden_activation {text.hidden_activation!r} is not supported ({', '.join(ACTIVATIONS)} are)"
        )
    if unknown := set(text.layer_types) - {SLIDING, FULL}:
        raise ValueError(f"layer_types {', '.join(sorted(unknown))} is not supported ({SLIDING} and {FULL} are)")
    if SLIDING in text.layer_types and devices[0].is_cpu() and text.sliding_window < MIN_CPU_WINDOW:
        raise ValueError(f"sliding_window {text.sliding_window} is not supported on CPU ({MIN_CPU_WINDOW} or more is)")
    if text.num_attention_heads % len(devices):
        raise ValueError(f"num_attention_heads {text.num_attention_heads} can't be split over {len(devices)} devices")
