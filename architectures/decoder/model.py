"""The PipelineModel of decoder-only families, over ragged rows: everything but the graph."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.engine import InferenceSession, Model
from max.graph.weights import WeightData

from architectures.decoder.config import DecoderConfig
from architectures.decoder.inputs import DecoderBuffers, DecoderInputs
from architectures.decoder.memory import activation_bytes
from architectures.decoder.rope_tables import RopeTables, rope_table_bytes
from architectures.layers.attention import FULL
from architectures.layers.kernels import product_instructions
from kv_cache import advance, to_device
from pipelines.background import in_background
from pipelines.config import PipelineConfig
from pipelines.context import TextContext
from pipelines.errors import loading_onto_devices
from pipelines.loading.graphs import Graphs, TracedGraphs
from pipelines.loading.weight_cache.cache import WeightCache
from pipelines.loading.weight_spec import TracedGraph
from pipelines.loading.weights import check_weights, materialize
from pipelines.pipeline_model import (
    AlwaysSignalBuffersMixin,
    ModelInputs,
    ModelOutputs,
    PendingTokens,
    PipelineModel,
    ReturnLogits,
)
from pipelines.sampling.log_probabilities import LogProbabilitiesMixin
from pipelines.stages import NullStages, Stages
from pipelines.timers import coarse_timers

DECODER = "decoder"
"""Name of the graph for steps of text, which every decoder has."""


class DecoderModel(LogProbabilitiesMixin, AlwaysSignalBuffersMixin, PipelineModel):
    """Loads and runs the graphs that a subclass builds.

    pipeline_config: its max_length bounds the positions. weights: the state dict, in the graph's names. return_logits:
    MAX's own ReturnLogits is accepted too. open_weight_cache: opens the weights that were quantized before. graphs:
    None: they are traced and compiled, and not kept. models: the compiled graphs, by name.
    """

    model_config_cls: ClassVar[type[DecoderConfig]]

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        session: InferenceSession,
        devices: Sequence[Device],
        huggingface_config: Any,
        weights: Mapping[str, WeightData],
        return_logits: ReturnLogits | str = ReturnLogits.VARIABLE,
        stages: Stages | None = None,
        open_weight_cache: Callable[[], WeightCache] | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        self.pipeline_config, self.huggingface_config = pipeline_config, huggingface_config
        self.devices, self.state_dict = devices, weights
        self.stages, self.open_weight_cache = stages or NullStages(), open_weight_cache
        self.config = self._finalized_config(pipeline_config, huggingface_config, weights, return_logits)
        self.kv_params = self.config.get_kv_params()
        self.rope_tables = RopeTables(
            self.config, devices, self.config.calculate_max_seq_len(huggingface_config, pipeline_config)
        )
        self.weights: dict[str, Any] = {}  # the compiled graphs read them in place
        self.models: dict[str, Model] = {}
        self.graphs = graphs or self._traced_graphs()
        self.model = self.load_model(session)

    @staticmethod
    @abstractmethod
    def build_graph(config: Any) -> TracedGraph:
        """Builds the graph of a finalized configuration."""

    @classmethod
    def get_num_layers(cls, huggingface_config: Any) -> int:
        """Number of layers of the text model."""
        return cls.model_config_cls.get_num_layers(huggingface_config)

    @classmethod
    def _finalized_config(
        cls, run: PipelineConfig, huggingface_config: Any, weights: Mapping[str, WeightData], return_logits: Any
    ) -> DecoderConfig:
        config = cls.model_config_cls.initialize_from_config(run, huggingface_config)
        config.finalize(huggingface_config, weights, return_logits)
        return config

    @classmethod
    def trace(
        cls,
        pipeline_config: PipelineConfig,
        huggingface_config: Any,
        weights: Mapping[str, WeightData],
        return_logits: ReturnLogits | str = ReturnLogits.VARIABLE,
        **placement: Any,
    ) -> dict[str, TracedGraph]:
        """Traces all graphs of the model, by name; `placement`: fields of its configuration that devices decide."""
        config = cls._finalized_config(pipeline_config, huggingface_config, weights, return_logits)
        return cls.trace_graphs(dataclasses.replace(config, **placement), huggingface_config)

    @classmethod
    def trace_graphs(cls, config: Any, huggingface_config: Any) -> dict[str, TracedGraph]:
        """Traces all graphs of a finalized configuration, by name."""
        return {DECODER: cls.build_graph(config)}

    @classmethod
    def estimate_activation_memory(cls, pipeline_config: PipelineConfig, huggingface_config: Any) -> int:
        config = cls.model_config_cls.initialize_from_config(pipeline_config, huggingface_config)
        num_positions = config.calculate_max_seq_len(huggingface_config, pipeline_config)
        return activation_bytes(
            config, pipeline_config.max_step_tokens, pipeline_config.max_batch_size
        ) + rope_table_bytes(config, num_positions)

    @property
    def graph_names(self) -> Sequence[str]:
        return self.graphs.names

    def required_graphs(self, context: TextContext) -> Sequence[str]:
        return (DECODER,)

    def load_model(self, session: InferenceSession) -> Model:
        """Checks the weights of all graphs, and compiles the decoder.

        Raises:
            InputError: A tensor is missing, misshapen or unexpected; this is found before anything is compiled.
        """
        self.session = session
        check_weights([spec for name in self.graphs.names for spec in self.graphs.weights(name)], self.state_dict)
        self.compile([DECODER])
        return self.models[DECODER]

    def describe_products(self) -> str:
        return product_instructions(self.config.encoding.product_dtype) if self.config.devices[0].is_cpu() else ""

    def compile(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.models:
                with loading_onto_devices():
                    self.models[name] = self._compile(name)
        self.graphs.keep()

    def _traced_graphs(self) -> Graphs:
        with self.stages.stage("graph"):
            return TracedGraphs(self.trace_graphs(self.config, self.huggingface_config))

    def _compile(self, name: str) -> Model:
        """Compiles a graph while its weights are read: the compiler does not need them."""
        specs, detail = self.graphs.weights(name), "" if name == DECODER else name.replace("_", " ")
        compiling = self.graphs.compile_async(name, self.session)
        missing = [spec for spec in specs if spec.name not in self.weights]
        with self.stages.stage("weights", detail):
            cache = self.open_weight_cache() if self.open_weight_cache else None
            self.weights |= materialize(missing, self.state_dict, self.devices, cache)
        if cache is not None and cache.problem is not None:
            self.stages.note(cache.problem)
        weights = {spec.name: self.weights[spec.name] for spec in specs}
        stage, default_detail = self.graphs.stage
        with self.stages.stage(stage, detail or default_detail):
            # A thread that waits for the compiler does not notice Ctrl-C.
            return in_background(lambda: self.session.init(compiling, weights_registry=weights)).result()

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: dict[str, tuple[Any, ...]] | None = None,
        return_n_logits: int = 1,
        pending: PendingTokens | None = None,
    ) -> DecoderBuffers:
        """Builds the inputs of a step that computes each context's scheduled tokens.

        Args:
            replica_batches: The contexts of exactly one replica.
            kv_cache_inputs: The cache inputs of the step.
            return_n_logits: Last positions of each row whose logits are returned.
            pending: The tokens of the step before, for contexts that have a `pending_row` in it.

        Raises:
            ValueError: There is not exactly one replica, no context, or no cache inputs.
        """
        if len(replica_batches) != 1 or not replica_batches[0] or kv_cache_inputs is None:
            raise ValueError("one replica with at least one context, and its KV cache inputs, are needed")
        contexts = replica_batches[0]
        starts, lengths = ([getattr(c, n) for c in contexts] for n in ("num_computed_tokens", "num_scheduled_tokens"))
        row_offsets = np.cumsum([0, *lengths])
        return self._inputs(
            tokens=self._tokens(contexts, row_offsets, pending),
            row_offsets=row_offsets,
            positions=_positions(starts, lengths),
            kv_cache_inputs=kv_cache_inputs,
            return_n_logits=return_n_logits,
        )

    def _tokens(
        self, contexts: Sequence[TextContext], row_offsets: npt.NDArray[Any], pending: PendingTokens | None
    ) -> Buffer:
        """The scheduled tokens [T] on the first device; a pending one is the last of its row."""
        tokens = self._place(np.concatenate([np.asarray(c.scheduled_tokens, np.int64) for c in contexts]))
        rows = {end - 1: c.pending_row for c, end in zip(contexts, row_offsets[1:].tolist(), strict=True)}
        waiting = {place: row for place, row in rows.items() if row is not None}
        return (
            tokens if pending is None or not waiting else pending.insert_into(tokens, [*waiting], [*waiting.values()])
        )

    def prepare_next_token_inputs(self, next_tokens: Buffer, prev_model_inputs: ModelInputs) -> DecoderBuffers:
        """Builds the inputs of one more token per row; the page tables must already reach one token further."""
        previous = self._completed(prev_model_inputs)
        assert previous.position_ids is not None and previous.kv_cache_inputs is not None
        offsets = previous.input_row_offsets.to_numpy().astype(np.int64)
        lengths = np.diff(offsets)
        return self._inputs(
            tokens=next_tokens,
            row_offsets=np.arange(len(offsets)),
            positions=previous.position_ids.to_numpy()[0, offsets[1:] - 1] + np.uint32(1),
            kv_cache_inputs=advance(previous.kv_cache_inputs, self.kv_params, lengths.tolist()),
            return_n_logits=1,
        )

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Runs one step.

        Raises:
            ValueError: The inputs have no pages, or no position_ids though no layer of the model keeps all tokens.
        """
        return self._run(DECODER, self._completed(model_inputs))

    def _run(self, name: str, inputs: DecoderBuffers) -> ModelOutputs:
        return ModelOutputs(*self._execute(name, *inputs.flatten()))

    def _execute(self, name: str, *inputs: Buffer) -> Sequence[Buffer]:
        with coarse_timers() if self.devices[0].is_host else nullcontext():
            return self.models[name].execute(*inputs)

    def _completed(self, inputs: ModelInputs) -> DecoderBuffers:
        """Adds positions and RoPE tables to inputs that were made without them."""
        if not isinstance(inputs, DecoderInputs) or inputs.kv_cache_inputs is None:
            raise ValueError("DecoderInputs with kv_cache_inputs are needed")
        if inputs.position_ids is not None and inputs.freqs_cis is not None:
            return inputs
        if FULL not in inputs.kv_cache_inputs:
            raise ValueError("position_ids are needed: they follow from the cache only if a layer keeps all tokens")
        starts = inputs.kv_cache_inputs[FULL][0].cache_lengths.to_numpy()
        positions = _positions(starts, np.diff(inputs.input_row_offsets.to_numpy()))
        return dataclasses.replace(inputs, **self._position_inputs(positions))

    def _inputs(
        self,
        tokens: Buffer,
        row_offsets: npt.NDArray[Any],
        positions: npt.NDArray[np.uint32],
        kv_cache_inputs: dict[str, tuple[Any, ...]],
        return_n_logits: int,
    ) -> DecoderBuffers:
        return DecoderBuffers(
            tokens=tokens,
            input_row_offsets=self._place(row_offsets.astype(np.uint32)),
            signal_buffers=self.signal_buffers,
            return_n_logits=Buffer.from_numpy(np.array([return_n_logits], np.int64)),
            kv_cache_inputs=kv_cache_inputs,
            **self._position_inputs(positions),
        )

    def _position_inputs(self, positions: npt.NDArray[np.uint32]) -> dict[str, Any]:
        num_positions = int(positions.max()) + 1
        return {"position_ids": self._place(positions[None]), "freqs_cis": self.rope_tables.up_to(num_positions)}

    def _place(self, array: npt.NDArray[Any]) -> Buffer:
        """Places an array on the first device."""
        return to_device(array, self.devices[0])


def _positions(starts: Iterable[int], lengths: Iterable[int]) -> npt.NDArray[np.uint32]:
    """Positions [T] of ragged rows that begin at `starts`."""
    rows = [np.arange(start, start + length, dtype=np.uint32) for start, length in zip(starts, lengths, strict=True)]
    return np.concatenate(rows)
