"""The configuration that decoder-only families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from max.dtype import DType
from max.graph import DeviceRef
from max.graph.weights import WeightData

from architectures.layers.activations import ACTIVATIONS
from architectures.layers.attention import FULL, SLIDING
from architectures.layers.paged_attention import HEAD_DIMS
from architectures.layers.rope import RopeParameters
from kv_cache import KVCacheParams, PageGroup
from pipelines.config import AUTO, PipelineConfig
from pipelines.loading.blocks import StoredType, stored_type
from pipelines.loading.checkpoint import resolve_config
from pipelines.loading.encoding import Encoding
from pipelines.loading.encodings import (
    DEFAULT_ENCODINGS,
    ENCODINGS,
    QUANT_METHODS,
    by_device,
    encoding,
)
from pipelines.loading.encodings.float8_e4m3fn import Float8Config
from pipelines.loading.weights import same_values
from pipelines.pipeline_model import ReturnLogits

Encodings = Mapping[str, tuple[str, ...]]
"""Names of encodings by device kind, the default first."""


@dataclass(kw_only=True)
class DecoderConfig:
    """The configuration of a decoder on the devices of one run; a family adds its own fields.

    The names are transformers'; hidden_activation is also called hidden_act there. layer_types: SLIDING or FULL for
    each layer. sliding_window: of the SLIDING layers. rope_parameters: by layer type. dtype: of activations and cache.
    encoding: of the weight matrices in memory. head_encoding: of the embedding and the head. quant_config: scaling of
    the checkpoint's float8 matrices. stored: types of the checkpoint's tensors, by the graph's names. `finalize` sets
    return_logits, tie_word_embeddings and stored.
    """

    encodings: ClassVar[Encodings] = by_device([name for name in ENCODINGS if name not in QUANT_METHODS.values()])

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
    head_encoding: Encoding
    devices: tuple[DeviceRef, ...]
    kv_cache_dtype: DType | None = None  # None: dtype
    quant_config: Float8Config | None = None
    return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN
    tie_word_embeddings: bool = False
    stored: Mapping[str, StoredType] = field(default_factory=dict)
    is_finalized: bool = False

    @classmethod
    def initialize(cls, pipeline_config: PipelineConfig, model_config: Any | None = None) -> Self:
        """Creates the configuration of a run; `model_config`, if None, is read from the run's checkpoint."""
        if model_config is None:
            run = pipeline_config
            model_config = resolve_config(
                run.model, run.revision, run.trust_remote_code, run.weight_path
            ).huggingface_config
        return cls.initialize_from_config(pipeline_config, model_config)

    @classmethod
    def initialize_from_config(cls, pipeline_config: PipelineConfig, huggingface_config: Any) -> Self:
        """Creates the configuration from that of transformers, of a multimodal model or of a text model.

        Raises:
            ValueError: The graph does not support a value; the message names field and value.
        """
        text = huggingface_config.get_text_config()
        config = cls(**cls.common_fields(pipeline_config, text), **cls.own_fields(text))
        quantization_config = getattr(huggingface_config, "quantization_config", None)
        config._read_quantization(quantization_config, cls._requested_encoding(pipeline_config), pipeline_config)
        config.refuse_unsupported()
        return config

    @classmethod
    def common_fields(cls, run: PipelineConfig, text: Any) -> dict[str, Any]:
        """Values of this class's fields, from a text model's configuration."""
        layer_types = _layer_types(text)
        requested = cls._requested_encoding(run)
        num_kv_heads, head_dim = cls.heads_of(text, SLIDING if SLIDING in layer_types else FULL)
        dtype = requested.activation_dtypes[run.device_kind]
        in_memory = _with_activations(requested, run)
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
            "dtype": dtype,
            "kv_cache_dtype": _kv_cache_dtype(run, dtype, in_memory.product_dtype),
            "encoding": in_memory,
            "head_encoding": cls._head_encoding(run),
            "devices": tuple(run.device_refs),
        }

    @classmethod
    def heads_of(cls, text: Any, layer_type: str) -> tuple[int, int]:
        """Number of key/value heads in layers of this type, and their head_dim, from a text model's configuration."""
        return text.num_key_value_heads, getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads

    @classmethod
    def own_fields(cls, text: Any) -> dict[str, Any]:
        """Values of the fields that the family adds.

        Raises:
            ValueError: The graph does not support a value; the message names field and value.
        """
        return {}

    @classmethod
    def _requested_encoding(cls, run: PipelineConfig) -> Encoding:
        """Encoding that the run asks for; the device's default if the run leaves it open.

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

    @classmethod
    def _head_encoding(cls, run: PipelineConfig) -> Encoding:
        """Encoding of the embedding and the head: the one that the run asks for, or what suits the others'.

        Raises:
            ValueError: The device does not run it.
        """
        if run.head_encoding == AUTO:
            return _with_activations(cls._requested_encoding(run), run).head
        choices = cls.encodings[run.device_kind]
        if run.head_encoding not in choices:
            raise ValueError(
                f"head_encoding {run.head_encoding!r} does not run on {run.device_kind} ({', '.join(choices)} do)"
            )
        record = encoding(run.head_encoding).on(run.device_kind)
        return record if run.activation_encoding == AUTO else record.with_activations(DType[run.activation_encoding])

    def _read_quantization(self, quantization_config: Any | None, requested: Encoding, run: PipelineConfig) -> None:
        if quantization_config is None:
            if requested.name in QUANT_METHODS.values():
                raise ValueError(f"quantization_encoding {requested.name} needs a checkpoint that is stored in it")
            return
        if not set(QUANT_METHODS.values()) & set(self.encodings[run.device_kind]):
            raise ValueError(f"quantization_config is not supported for {type(self).__name__.removesuffix('Config')}")
        self.quant_config = Float8Config.from_huggingface(quantization_config)

    def refuse_unsupported(self) -> None:
        """Refuses values that the graph would silently ignore or can't compute.

        Raises:
            ValueError: There is such a value; the message names field and value.
        """
        if self.hidden_activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"hidden_activation {self.hidden_activation!r} is not supported ({known} are)")
        head_dims = {self.kv_heads(layer_type)[1] for layer_type in self.layer_types}
        if self.devices[0].is_cpu() and (unknown := head_dims - set(HEAD_DIMS)):
            known = f"multiples of {HEAD_DIMS.step} up to {HEAD_DIMS[-1]}"
            raise ValueError(f"head_dim {min(unknown)} is not supported on CPU ({known} are)")
        self._refuse_unsplittable()

    def _refuse_unsplittable(self) -> None:
        """Refuses numbers of devices that counts can't be split over, and names those that they can."""
        num_devices = len(self.devices)
        wrong = self._unsplittable(num_devices)
        if wrong:
            numbers = ", ".join(str(n) for n in range(1, num_devices) if not self._unsplittable(n))
            raise ValueError(
                f"{wrong} can't be split over {num_devices} devices: "
                f"name fewer in devices (--devices); possible here: {numbers}"
            )

    def _unsplittable(self, num_devices: int) -> str:
        """Field and value of the first count that can't be split over so many devices; nothing if all can."""
        for name, (count, can_replicate) in self.split_counts.items():
            if count % num_devices and not (can_replicate and num_devices % count == 0):
                return f"{name} {count}"
        return ""

    @property
    def split_counts(self) -> dict[str, tuple[int, bool]]:
        """Counts that several devices share, by field, and whether devices that outnumber one may replicate it."""
        return {
            "num_attention_heads": (self.num_attention_heads, False),
            "num_key_value_heads": (self.num_key_value_heads, True),
            "intermediate_size": (self.intermediate_size, False),
        }

    def finalize(
        self,
        huggingface_config: Any,
        state_dict: Mapping[str, WeightData],
        return_logits: ReturnLogits | str,
        quant_config: Any | None = None,
    ) -> None:
        """Sets the fields that depend on the weights: whether the head is tied, and the types of the tensors.

        As in transformers, a stored head that differs from the embedding is used, even if config.json ties them.

        Args:
            huggingface_config: The transformers configuration.
            state_dict: The tensors as the weight adapter returns them; they are not changed.
            return_logits: The positions whose logits are returned; MAX's own ReturnLogits is accepted too.
            quant_config: Replaces the scaling of float8 weights that config.json describes.
        """
        head, embedding = state_dict.get("lm_head.weight"), state_dict.get("embed_tokens.weight")
        is_tied = bool(huggingface_config.get_text_config().tie_word_embeddings)
        self.tie_word_embeddings = is_tied and (head is None or embedding is None or same_values(head, embedding))
        self.quant_config = quant_config or self.quant_config
        self.stored = {name: stored_type(data) for name, data in state_dict.items()}
        self.return_logits = ReturnLogits(getattr(return_logits, "value", return_logits))
        self.is_finalized = True

    def kv_heads(self, layer_type: str) -> tuple[int, int]:
        """Number of key/value heads in layers of this type, and their head_dim."""
        return self.num_key_value_heads, self.head_dim

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers of the decoder."""
        return len(self.layer_types)

    @property
    def feed_forward_width(self) -> int:
        """Values of a token that the feed-forward block holds at once: two projections and their product."""
        return 3 * self.intermediate_size

    @property
    def per_token_input_width(self) -> int:
        """Values of a token that all layers read beside its hidden state."""
        return 0

    @property
    def cached_layer_types(self) -> tuple[str, ...]:
        """Types of the layers that have keys and values of their own."""
        return self.layer_types

    @property
    def rope_dims(self) -> dict[str, int]:
        """Width of each layer type's RoPE table."""
        return {layer_type: self.kv_heads(layer_type)[1] for layer_type in self.rope_parameters}

    @property
    def interleaved_rope_weights(self) -> bool:
        """Always False: pairs are formed of a head's halves, as in the checkpoints of transformers."""
        return False

    @property
    def kv_params(self) -> KVCacheParams:
        """The page groups of the model's cache, as `get_kv_params` returns them."""
        return self.get_kv_params()

    @staticmethod
    def get_num_layers(huggingface_config: Any) -> int:
        """Number of layers of the text model."""
        return int(huggingface_config.get_text_config().num_hidden_layers)

    @classmethod
    def calculate_max_seq_len(cls, huggingface_config: Any, model_config: PipelineConfig) -> int:
        """Most tokens that a request of a run may have.

        Args:
            huggingface_config: The transformers configuration.
            model_config: The run.

        Raises:
            ValueError: The run's max_length is more than the model's limit.
        """
        limit = int(huggingface_config.get_text_config().max_position_embeddings)
        if model_config.max_length is not None and model_config.max_length > limit:
            raise ValueError(f"max_length {model_config.max_length} is more than the {limit} tokens of the model")
        return model_config.max_length or limit

    def get_max_seq_len(self) -> int:
        """Most tokens that the model takes, `max_position_embeddings`."""
        return self.max_position_embeddings

    @classmethod
    def construct_kv_params(cls, huggingface_config: Any, pipeline_config: PipelineConfig) -> KVCacheParams:
        """Page groups of a run's cache, from the transformers configuration.

        Raises:
            ValueError: As `initialize_from_config`.
        """
        return cls.initialize_from_config(pipeline_config, huggingface_config).get_kv_params()

    def get_kv_params(self) -> KVCacheParams:
        """Page groups of the model's cache: one for each layer type that it has."""
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
            dtype=self.kv_cache_dtype or self.dtype,
            devices=self.devices,
            window=self.sliding_window if layer_type == SLIDING else None,
        )


def _with_activations(requested: Encoding, run: PipelineConfig) -> Encoding:
    """The encoding of the matrices in the device's memory, whose products round activations as the run asks for.

    Raises:
        ValueError: The device or the encoding does not have the type.
    """
    record = requested.on(run.device_kind)
    if run.activation_encoding == AUTO:
        return record
    dtype, on_gpu = DType[run.activation_encoding], run.device_kind == "gpu"
    dtypes = (record.activation_dtypes["gpu"],) if on_gpu else record.product_dtypes
    if dtype not in dtypes:
        place, choices = " on gpu" if on_gpu else "", ", ".join(choice.name for choice in dtypes)
        raise ValueError(
            f"activation_encoding (--activation-encoding) {dtype.name} does not go with {record.name}{place}: "
            f"choose one of {AUTO}, {choices}"
        )
    return record.with_activations(dtype)


def _kv_cache_dtype(run: PipelineConfig, activation_dtype: DType, product_dtype: DType) -> DType:
    """The type of the cache: unless the run names one, that of the activations.

    Where products round activations to int8, bfloat16 adds less than a tenth of their error and halves what is read.

    Raises:
        ValueError: The run is on GPU, and the type is not the activations'.
    """
    if run.kv_cache_dtype == AUTO:
        return DType.bfloat16 if product_dtype == DType.int8 else activation_dtype
    dtype = DType[run.kv_cache_dtype]
    if run.device_kind == "gpu" and dtype != activation_dtype:
        choices = f"{AUTO} and {activation_dtype.name} do"
        raise ValueError(f"kv_cache_dtype (--kv-cache-dtype) {run.kv_cache_dtype} does not run on gpu ({choices})")
    return dtype


def _layer_types(text: Any) -> tuple[str, ...]:
    """Type of each layer; families whose configurations don't name the types have only one.

    Raises:
        ValueError: A type is not supported.
    """
    default = FULL if getattr(text, "sliding_window", None) is None else SLIDING
    layer_types = tuple(getattr(text, "layer_types", None) or [default] * text.num_hidden_layers)
    if unknown := set(layer_types) - {SLIDING, FULL}:
        raise ValueError(f"layer_types {', '.join(sorted(unknown))} is not supported ({SLIDING} and {FULL} are)")
    return layer_types


def _rope_parameters(parameters: Mapping[str, Any], layer_types: tuple[str, ...]) -> dict[str, RopeParameters]:
    """RoPE by layer type; the configurations of some families have one entry for all of them."""
    if "rope_theta" in parameters:
        return dict.fromkeys(layer_types, RopeParameters.from_huggingface(parameters, "rope_parameters"))
    return {
        layer_type: RopeParameters.from_huggingface(parameters[layer_type], f"rope_parameters.{layer_type}")
        for layer_type in dict.fromkeys(layer_types)
    }
