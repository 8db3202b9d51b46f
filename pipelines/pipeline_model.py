"""The contract between an architecture and the pipeline that runs it.

The names are MAX's. An architecture has an `ArchConfig` and a `PipelineModel`; its record (`registry.py`) names both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from max.driver import Buffer, Device
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import BufferType, DeviceRef
from max.graph.weights import WeightData
from max.nn import Signals

from kv_cache import KVCacheParams

if TYPE_CHECKING:
    from pipelines.config import PipelineConfig
    from pipelines.context import TextContext
    from pipelines.loading.weight_spec import TracedGraph


class ModelInputs:
    """The inputs of one step of a model; each architecture has a subclass."""

    kv_cache_inputs: dict[str, tuple[Any, ...]] | None


class ReturnLogits(StrEnum):
    """The positions whose logits a step returns."""

    LAST_TOKEN = "last_token"
    """The last of each row."""
    VARIABLE = "variable"
    """The last `return_n_logits` of each row."""
    ALL = "all"
    """Every one."""


@dataclass(frozen=True)
class ModelOutputs:
    """The outputs of a step, on the first device.

    logits: [M, V] float32, of the positions that ReturnLogits selects.
    next_token_logits: [B, V] float32, of each row's last position.
    logit_offsets: [B + 1] int64, where each row begins in `logits`.
    greedy_tokens: [M] int64, the likeliest token of each of these positions.
    max_logits: [M] float32, its logit; infinite, or the lowest float32, where no token is likeliest.
    """

    logits: Buffer
    next_token_logits: Buffer
    logit_offsets: Buffer
    greedy_tokens: Buffer
    max_logits: Buffer


class PendingTokens(Protocol):
    """The tokens that the last launched step chooses, one for each of its rows; they are on the device alone."""

    def insert_into(self, tokens: Buffer, places: Sequence[int], rows: Sequence[int]) -> Buffer:
        """Replaces the tokens [T] at `places` by those of `rows` of that step, on the device."""


class ArchConfig(Protocol):
    """The configuration of a graph, set in two steps: from config.json and the run, then from the weights."""

    @classmethod
    def initialize(cls, pipeline_config: PipelineConfig, model_config: Any | None = None) -> Self:
        """Creates the configuration of a run; `model_config`, if None, is read from the run's checkpoint."""

    @classmethod
    def initialize_from_config(cls, pipeline_config: PipelineConfig, huggingface_config: Any) -> Self:
        """Creates the configuration from config.json and the run.

        Raises:
            ValueError: The graph does not support a value; the message names field and value.
        """

    def finalize(
        self,
        huggingface_config: Any,
        state_dict: Mapping[str, WeightData],
        return_logits: ReturnLogits | str,
        quant_config: Any | None = None,
    ) -> None:
        """Sets the fields that only the weights determine. No graph can be built before."""

    @staticmethod
    def get_num_layers(huggingface_config: Any) -> int:
        """Number of layers of the text model."""

    def get_kv_params(self) -> KVCacheParams:
        """The page groups of the model's cache."""


def signal_buffer_types(devices: Sequence[DeviceRef]) -> list[BufferType]:
    """Types of the buffers through which collectives synchronize, one per device.

    One byte on the CPU, and on a GPU that is alone, where there is nobody to wait for: MAX's take 280 MB each.
    """
    if len(devices) == 1 or devices[0].is_cpu():
        return [BufferType(DType.uint8, [1], device) for device in devices]
    return Signals(devices).input_types()


def allocate_signal_buffers(devices: Sequence[Device]) -> list[Buffer]:
    """Allocates one signal buffer per device."""
    if len(devices) == 1 or devices[0].is_host:
        return [Buffer.zeros([1], DType.uint8, device) for device in devices]
    return Signals.allocate(devices)


class AlwaysSignalBuffersMixin:
    """Signal buffers for any number of devices, one included, so that all graphs have the same inputs."""

    devices: Sequence[Device]
    _signal_buffers: list[Buffer] | None = None

    @property
    def signal_buffers(self) -> list[Buffer]:
        """One buffer per device, allocated on first use."""
        if self._signal_buffers is None:
            self._signal_buffers = allocate_signal_buffers(self.devices)
        return self._signal_buffers


class PipelineModel(ABC):
    """A compiled model with its weights: inputs in, logits out.

    It keeps no state of requests: pages and lengths belong to the cache manager, tokens to the contexts.
    """

    model_config_cls: ClassVar[type[Any]]
    model: Model

    @classmethod
    @abstractmethod
    def trace(
        cls, pipeline_config: PipelineConfig, huggingface_config: Any, weights: Mapping[str, WeightData]
    ) -> dict[str, TracedGraph]:
        """Traces all graphs of the model, by name; no values of weights are read, and no device is opened.

        A model whose record names `lookup_tables` takes `tables_on_device` too: whether their rows are read on the
        first device, where there is room for them.
        """

    @property
    @abstractmethod
    def graph_names(self) -> Sequence[str]:
        """Names of all graphs of the model: warm-up and ahead-of-time compilation loop over them."""

    @abstractmethod
    def required_graphs(self, context: TextContext) -> Sequence[str]:
        """Names of the graphs that the steps of a request run."""

    @classmethod
    def estimate_activation_memory(cls, pipeline_config: PipelineConfig, huggingface_config: Any) -> int:
        """Estimates the bytes that a step takes, beside weights and cache, on the device where it takes most."""
        return 0

    @abstractmethod
    def compile(self, names: Iterable[str]) -> None:
        """Compiles the graphs of these names that are not compiled yet, so that nothing compiles inside a step."""

    def describe_products(self) -> str:
        """Names the instructions that products are computed with, where the model knows a choice; else nothing."""
        return ""

    @abstractmethod
    def load_model(self, session: InferenceSession) -> Model:
        """Checks the weights of all graphs and compiles the decoder."""

    @abstractmethod
    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: dict[str, tuple[Any, ...]] | None = None,
        return_n_logits: int = 1,
        pending: PendingTokens | None = None,
    ) -> ModelInputs:
        """Builds the inputs of a step that computes each context's scheduled tokens, prefill and decode alike.

        Args:
            replica_batches: The contexts, by replica.
            kv_cache_inputs: The cache inputs of the step.
            return_n_logits: Last positions of each row whose logits are returned.
            pending: The tokens of the step before, for contexts that have a `pending_row` in it.
        """

    @abstractmethod
    def prepare_next_token_inputs(self, next_tokens: Buffer, prev_model_inputs: ModelInputs) -> ModelInputs:
        """Builds the inputs of the step after `prev_model_inputs`: one token per row [B], over the same page tables."""

    @abstractmethod
    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Runs one step."""

    @classmethod
    @abstractmethod
    def get_num_layers(cls, huggingface_config: Any) -> int:
        """Number of layers of the text model."""
