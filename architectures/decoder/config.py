"""The configuration that decoder-only families have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from max.dtype import DType
from max.graph import DeviceRef
from max.graph.weights import WeightData

from architectures.layers.activations import ACTIVATIONS
from architectures.layers.attention import FULL, MIN_CPU_WINDOW, SLIDING
from architectures.layers.rope import RopeParameters
from kv_cache import KVCacheParams, PageGroup
from pipelines.config import PipelineConfig
from pipelines.loading.checkpoint import resolve_config
from pipelines.loading.encoding import Encoding
from pipelines.loading.encodings import DEFAULT_ENCODINGS, by_device, encoding
from pipelines.loading.encodings.float8_e4m3fn import Float8Config
from pipelines.loading.weights import same_values
from pipelines.pipeline_model import ReturnLogits

Encodings = Mapping[str, tuple[str, ...]]
"""Names by kind of device, the default first."""


@dataclass(kw_only=True)
class DecoderConfig:
    """One decoder on the devices of one run; a family adds what only it has.

    The names are transformers'; hidden_activation is its hidden_act too. layer_types: SLIDING or FULL for each layer.
    sliding_window: of the SLIDING ones. rope_parameters: by layer type. dtype: of activations and cache. encoding: of
    the weight matrices in memory. quant_config: how the checkpoint's float8 matrices are scaled. stored: the types of
    the checkpoint's tensors, by the graph's names; with return_logits and tie_word_embeddings it is what `finalize`
    settles.
    """

    encodings: ClassVar[Encodings] = by_device(["float32", "bfloat16"])

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_activation: str
    max_position_embeddings: int
    rms_norm_eps: float
    attention_bias: bool
    layer_types: tuple[str, ...]
    sliding_window: int | None
    rope_parameters: Mapping[str, RopeParameters]
    dtype: DType
    encoding: Encoding
    devices: tuple[DeviceRef, ...]
    quant_config: Float8Config | None = None
    return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN
    tie_word_embeddings: bool = False
    stored: Mapping[str, DType] = field(default_factory=dict)
    is_finalized: bool = False

    @classmethod
    def initialize(cls, pipeline_config: PipelineConfig, model_config: Any | None = None) -> Self:
        """From the run alone. model_config: the Hugging Face configuration, read from the checkpoint when None."""
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
        quantization_config = getattr(huggingface_config, "quantization_config", None)
        config._read_quantization(quantization_config, cls._requested_encoding(pipeline_config), pipeline_config)
        config.refuse_unsupported()
        return config

    @classmethod
    def common_fields(cls, run: PipelineConfig, text: Any) -> dict[str, Any]:
        """The fields of this class, from a text model's configuration."""
        layer_types = _layer_types(text)
        requested = cls._requested_encoding(run)
        num_kv_heads, head_dim = cls.heads_of(text, SLIDING if SLIDING in layer_types else FULL)
        return {
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": num_kv_heads,
            "head_dim": head_dim,
            "hidden_activation": getattr(text, "hidden_activation", None) or text.hidden_act,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            "attention_bias": text.attention_bias,
            "layer_types": layer_types,
            "sliding_window": text.sliding_window if SLIDING in layer_types else None,
            "rope_parameters": _rope_parameters(text.rope_parameters, layer_types),
            "dtype": requested.activation_dtypes[run.device_kind],
            "encoding": requested.on(run.device_kind),
            "devices": tuple(run.device_refs),
        }

    @classmethod
    def heads_of(cls, text: Any, layer_type: str) -> tuple[int, int]:
        """Heads of keys and values in layers of this type, and the size of a head."""
        return text.num_key_value_heads, getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads

    @classmethod
    def own_fields(cls, text: Any) -> dict[str, Any]:
        """The fields that the family adds."""
        return {}

    @classmethod
    def _requested_encoding(cls, run: PipelineConfig) -> Encoding:
        """The encoding that the run asks for; the device's default, if it leaves it open.

        Raises:
            ValueError: The device does not run it.
        """
        choices, name = cls.encodings[run.device_kind], run.quantization_encoding
        name = DEFAULT_ENCODINGS[run.device_kind] if run.leaves_encoding_open else name
        if name not in choices:
            raise ValueError(
                f"quantization_encoding {name!r} does not run on {run.device_kind} ({', '.join(choices)} do)"
            )
        return encoding(name)

    def _read_quantization(self, quantization_config: Any | None, requested: Encoding, run: PipelineConfig) -> None:
        if quantization_config is None:
            if requested.needs_quantized_checkpoint:
                raise ValueError(f"quantization_encoding {requested.name} needs a checkpoint that is stored in it")
            return
        if not any(encoding(name).needs_quantized_checkpoint for name in self.encodings[run.device_kind]):
            raise ValueError(f"quantization_config is not supported for {type(self).__name__.removesuffix('Config')}")
        self.quant_config = Float8Config.from_huggingface(quantization_config)

    def refuse_unsupported(self) -> None:
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
        state_dict: Mapping[str, WeightData],
        return_logits: ReturnLogits | str,
        quant_config: Any | None = None,
    ) -> None:
        """Settles which logits are returned, whether the head is the embedding, and what the checkpoint's types are.

        As in transformers, a stored head that differs from the embedding counts, even where config.json ties them.
        state_dict: as the weight adapter gives it; it is left as it is. return_logits: MAX's own is welcome too.
        quant_config: replaces what config.json says of float8 weights.
        """
        head, embedding = state_dict.get("lm_head.weight"), state_dict.get("embed_tokens.weight")
        is_tied = bool(huggingface_config.get_text_config().tie_word_embeddings)
        self.tie_word_embeddings = is_tied and (head is None or embedding is None or same_values(head, embedding))
        self.quant_config = quant_config or self.quant_config
        self.stored = {name: data.dtype for name, data in state_dict.items()}
        self.return_logits = ReturnLogits(getattr(return_logits, "value", return_logits))
        self.is_finalized = True

    def kv_heads(self, layer_type: str) -> tuple[int, int]:
        """Heads of keys and values in layers of this type, and the size of a head."""
        return self.num_key_value_heads, self.head_dim

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the decoder."""
        return len(self.layer_types)

    @property
    def cached_layer_types(self) -> tuple[str, ...]:
        """The types of the layers that have keys and values of their own."""
        return self.layer_types

    @property
    def rope_dims(self) -> dict[str, int]:
        """The width of each layer type's RoPE table."""
        return {layer_type: self.kv_heads(layer_type)[1] for layer_type in self.rope_parameters}

    @property
    def interleaved_rope_weights(self) -> bool:
        """False: the halves of a head are rotated, as in the checkpoints of transformers."""
        return False

    @property
    def kv_params(self) -> KVCacheParams:
        """As `get_kv_params`."""
        return self.get_kv_params()

    @staticmethod
    def get_num_layers(huggingface_config: Any) -> int:
        """Layers of the text model."""
        return int(huggingface_config.get_text_config().num_hidden_layers)

    @classmethod
    def calculate_max_seq_len(cls, huggingface_config: Any, model_config: PipelineConfig) -> int:
        """The most tokens that a request of this run may have; model_config: the run.

        Raises:
            ValueError: The run's max_length is more than the model's.
        """
        limit = int(huggingface_config.get_text_config().max_position_embeddings)
        if model_config.max_length is not None and model_config.max_length > limit:
            raise ValueError(f"max_length {model_config.max_length} is more than the {limit} tokens of the model")
        return model_config.max_length or limit

    def get_max_seq_len(self) -> int:
        """The most tokens that the model takes, `max_position_embeddings`."""
        return self.max_position_embeddings

    @classmethod
    def construct_kv_params(cls, huggingface_config: Any, pipeline_config: PipelineConfig) -> KVCacheParams:
        """The cache of a run, without a configuration at hand.

        Raises:
            ValueError: As `initialize_from_config`.
        """
        return cls.initialize_from_config(pipeline_config, huggingface_config).get_kv_params()

    def get_kv_params(self) -> KVCacheParams:
        """One page group for each layer type that the model has."""
        return KVCacheParams(
            tuple(self._page_group(layer_type) for layer_type in dict.fromkeys(self.cached_layer_types))
        )

    def _page_group(self, layer_type: str) -> PageGroup:
        num_kv_heads, head_dim = self.kv_heads(layer_type)
        return PageGroup(
            name=layer_type,
            num_layers=self.cached_layer_types.count(layer_type),
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=self.dtype,
            devices=self.devices,
            window=self.sliding_window if layer_type == SLIDING else None,
        )


def _layer_types(text: Any) -> tuple[str, ...]:
    """Of every layer; a family whose configurations don't say has one type.

    Raises:
        ValueError: A type that is not built.
    """
    default = FULL if getattr(text, "sliding_window", None) is None else SLIDING
    layer_types = tuple(getattr(text, "layer_types", None) or [default] * text.num_hidden_layers)
    if unknown := set(layer_types) - {SLIDING, FULL}:
        raise ValueError(f"layer_types {', '.join(sorted(unknown))} is not supported ({SLIDING} and {FULL} are)")
    return layer_types


def _rope_parameters(parameters: Mapping[str, Any], layer_types: tuple[str, ...]) -> dict[str, RopeParameters]:
    """By layer type; some families have one entry for all of them."""
    if "rope_theta" in parameters:
        return dict.fromkeys(layer_types, RopeParameters.from_huggingface(parameters, "rope_parameters"))
    return {
        layer_type: RopeParameters.from_huggingface(parameters[layer_type], f"rope_parameters.{layer_type}")
        for layer_type in dict.fromkeys(layer_types)
    }
