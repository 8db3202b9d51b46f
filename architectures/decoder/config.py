"""What the graphs of decoder-only families need to know, as far as they have it in common."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from max.dtype import DType
from max.graph import DeviceRef
from max.graph.weights import WeightData

from architectures.layers.attention import FULL, MIN_CPU_WINDOW, SLIDING
from architectures.layers.mlp import ACTIVATIONS
from architectures.layers.rope import RopeParameters
from kv_cache import KVCacheParams, PageGroup
from pipelines.config import PipelineConfig
from pipelines.loading.checkpoint import resolve_config
from pipelines.loading.float8 import ENCODING as FLOAT8_ENCODING
from pipelines.loading.float8 import FLOAT8, Float8Config
from pipelines.loading.weights import same_values
from pipelines.pipeline_model import ReturnLogits

Encodings = Mapping[str, tuple[str, ...]]

ENCODINGS: Encodings = {"cpu": ("float32", "bfloat16"), "gpu": ("bfloat16", "float32")}
"""What each kind of device runs, the default first."""

DTYPES = {"float32": DType.float32, "bfloat16": DType.bfloat16, FLOAT8_ENCODING: DType.bfloat16}
"""Of matrices; of float8 ones, those that are dequantized."""


@dataclass(kw_only=True)
class DecoderConfig:
    """One decoder on the devices of one run; a family adds what only it has.

    The names are transformers'; hidden_activation is its hidden_act too. layer_types: SLIDING or FULL for each layer.
    num_key_value_heads, head_dim, rope_parameters: by layer type. sliding_window: of the SLIDING ones. dtype: of
    activations and cache.
    matrix_dtype: of weight matrices, which on the CPU may be bfloat16 beside float32 activations.
    float8: how the checkpoint's float8 matrices are scaled; is_native_float8: whether they are multiplied as they are.
    `return_logits` and `tie_word_embeddings` are None, and native_float8 (names of such matrices) empty, until
    `finalize`.
    """

    encodings: ClassVar[Encodings] = ENCODINGS

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: Mapping[str, int]
    head_dim: Mapping[str, int]
    hidden_activation: str
    rms_norm_eps: float
    attention_bias: bool
    layer_types: tuple[str, ...]
    sliding_window: int | None
    rope_parameters: Mapping[str, RopeParameters]
    dtype: DType
    matrix_dtype: DType
    devices: tuple[DeviceRef, ...]
    float8: Float8Config | None = None
    is_native_float8: bool = False
    return_logits: ReturnLogits | None = None
    tie_word_embeddings: bool | None = None
    native_float8: frozenset[str] = frozenset()

    @classmethod
    def initialize(cls, pipeline_config: PipelineConfig, model_config: Any | None = None) -> Self:
        if model_config is None:
            run = pipeline_config
            model_config = resolve_config(run.model, run.revision, run.trust_remote_code).huggingface_config
        return cls.initialize_from_config(pipeline_config, model_config)

    @classmethod
    def initialize_from_config(cls, pipeline_config: PipelineConfig, huggingface_config: Any) -> Self:
        """From a configuration of transformers, multimodal or of the text model alone.

        Raises:
            ValueError: A value that the graph can't honour, naming field and value.
        """
        text = huggingface_config.get_text_config()
        config = cls(**cls.common_fields(pipeline_config, text), **cls.own_fields(text))
        config._read_quantization(getattr(huggingface_config, "quantization_config", None), pipeline_config)
        config.refuse_what_is_not_built()
        return config

    @classmethod
    def common_fields(cls, run: PipelineConfig, text: Any) -> dict[str, Any]:
        """The fields of this class, from a text model's configuration."""
        layer_types = _layer_types(text)
        heads = {kind: cls.heads_of(text, kind) for kind in dict.fromkeys(layer_types)}
        encoding = _encoding(run, cls.encodings)
        return {
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": {kind: count for kind, (count, _) in heads.items()},
            "head_dim": {kind: size for kind, (_, size) in heads.items()},
            "hidden_activation": getattr(text, "hidden_activation", None) or text.hidden_act,
            "rms_norm_eps": text.rms_norm_eps,
            "attention_bias": text.attention_bias,
            "layer_types": layer_types,
            "sliding_window": text.sliding_window if SLIDING in layer_types else None,
            "rope_parameters": _rope_parameters(text.rope_parameters, layer_types),
            "dtype": DTYPES[encoding] if run.device_kind == "gpu" else DType.float32,
            "matrix_dtype": DTYPES[encoding],
            "devices": tuple(run.device_refs),
        }

    @classmethod
    def heads_of(cls, text: Any, kind: str) -> tuple[int, int]:
        """How many heads keys and values have in layers of this type, and how large a head is."""
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return text.num_key_value_heads, size

    @classmethod
    def own_fields(cls, text: Any) -> dict[str, Any]:
        """The fields that the family adds."""
        return {}

    def _read_quantization(self, quantization_config: Any | None, run: PipelineConfig) -> None:
        is_asked_for = run.quantization_encoding == FLOAT8_ENCODING
        if quantization_config is None:
            if is_asked_for:
                raise ValueError(f"quantization_encoding {FLOAT8_ENCODING} needs a checkpoint that is stored in it")
            return
        if FLOAT8_ENCODING not in self.encodings[run.device_kind]:
            raise ValueError(f"quantization_config is not supported for {type(self).__name__.removesuffix('Config')}")
        self.float8 = Float8Config.from_huggingface(quantization_config)
        self.is_native_float8 = is_asked_for and run.device_kind == "gpu"

    def refuse_what_is_not_built(self) -> None:
        """Raises ValueError, naming field and value, for what the graph would silently ignore or can't compile."""
        if self.hidden_activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"hidden_activation {self.hidden_activation!r} is not supported ({known} are)")
        window = self.sliding_window
        if window is not None and self.devices[0].is_cpu() and window < MIN_CPU_WINDOW:
            raise ValueError(f"sliding_window {window} is not supported on CPU ({MIN_CPU_WINDOW} or more is)")
        if self.num_attention_heads % len(self.devices):
            heads = self.num_attention_heads
            raise ValueError(f"num_attention_heads {heads} can't be split over {len(self.devices)} devices")

    def finalize(
        self,
        huggingface_config: Any,
        state_dict: MutableMapping[str, WeightData],
        return_logits: ReturnLogits,
        quant_config: Any | None = None,
    ) -> None:
        """Settles which logits are returned and whether the head is the embedding.

        As in transformers, a stored head that differs from the embedding counts, even where config.json ties them.
        One that does not differ is taken out of the state dict. quant_config: replaces what config.json says of
        float8 weights.
        """
        self.read_weights(state_dict)
        self.float8 = quant_config or self.float8
        if self.is_native_float8:
            self.native_float8 = frozenset(name for name, data in state_dict.items() if data.dtype == FLOAT8)
        head, embedding = state_dict.get("lm_head.weight"), state_dict.get("embed_tokens.weight")
        tied = bool(huggingface_config.get_text_config().tie_word_embeddings)
        self.tie_word_embeddings = tied and (head is None or embedding is None or same_values(head, embedding))
        if self.tie_word_embeddings:
            state_dict.pop("lm_head.weight", None)
        self.return_logits = return_logits

    def read_weights(self, state_dict: MutableMapping[str, WeightData]) -> None:
        """What the family learns from the weights, and changes in them, before the rest is settled."""

    @property
    def cached_layer_types(self) -> tuple[str, ...]:
        """The types of the layers that have keys and values of their own."""
        return self.layer_types

    @property
    def rope_dims(self) -> dict[str, int]:
        """The width of each layer type's RoPE table."""
        return {kind: self.head_dim[kind] for kind in self.rope_parameters}

    def rope_tables(self, num_positions: int) -> dict[str, npt.NDArray[np.float32]]:
        """[num_positions, head_dim] for each layer type."""
        return {kind: rope.table(num_positions, self.head_dim[kind]) for kind, rope in self.rope_parameters.items()}

    @staticmethod
    def get_num_layers(huggingface_config: Any) -> int:
        return int(huggingface_config.get_text_config().num_hidden_layers)

    def get_kv_params(self) -> KVCacheParams:
        """One page group for each kind of layer that the model has."""
        return KVCacheParams(
            tuple(
                PageGroup(
                    name=kind,
                    num_layers=self.cached_layer_types.count(kind),
                    num_kv_heads=self.num_key_value_heads[kind],
                    head_dim=self.head_dim[kind],
                    dtype=self.dtype,
                    devices=self.devices,
                    window=self.sliding_window if kind == SLIDING else None,
                )
                for kind in dict.fromkeys(self.cached_layer_types)
            )
        )


def _layer_types(text: Any) -> tuple[str, ...]:
    """Of every layer; a family whose configurations don't say has one type.

    Raises:
        ValueError: A type that is not built.
    """
    kind = FULL if getattr(text, "sliding_window", None) is None else SLIDING
    layer_types = tuple(getattr(text, "layer_types", None) or [kind] * text.num_hidden_layers)
    if unknown := set(layer_types) - {SLIDING, FULL}:
        raise ValueError(f"layer_types {', '.join(sorted(unknown))} is not supported ({SLIDING} and {FULL} are)")
    return layer_types


def _rope_parameters(parameters: Mapping[str, Any], layer_types: tuple[str, ...]) -> dict[str, RopeParameters]:
    """By layer type; some families have one entry for all of them."""
    if "rope_theta" in parameters:
        return dict.fromkeys(layer_types, RopeParameters.from_huggingface(parameters, "rope_parameters"))
    return {
        kind: RopeParameters.from_huggingface(parameters[kind], f"rope_parameters.{kind}")
        for kind in dict.fromkeys(layer_types)
    }


def _encoding(run: PipelineConfig, encodings: Encodings) -> str:
    """The encoding that the run asks for; the device's default, if it leaves it open.

    Raises:
        ValueError: The device does not run it.
    """
    choices = encodings[run.device_kind]
    encoding = choices[0] if run.quantization_encoding == "auto" else run.quantization_encoding
    if encoding not in choices:
        raise ValueError(
            f"quantization_encoding {encoding!r} does not run on {run.device_kind} ({', '.join(choices)} do)"
        )
    return encoding
