"""A decoder-only text model over ragged rows: all of `PipelineModel` but the graph."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device
from max.engine import InferenceSession, Model
from max.graph.weights import WeightData

from kv_cache import advance
from pipelines.background import in_background
from pipelines.config import PipelineConfig
from pipelines.context import TextContext
from pipelines.loading.weights import check_weights, materialize
from pipelines.pipeline_model import (
    AlwaysSignalBuffersMixin,
    ModelInputs,
    ModelOutputs,
    PipelineModel,
    ReturnLogits,
    TracedGraph,
)
from pipelines.sampling.log_probabilities import LogProbabilitiesMixin
from pipelines.stages import NullStages, Stages


class DecoderModel(LogProbabilitiesMixin, AlwaysSignalBuffersMixin, PipelineModel):
    """Loads, feeds and runs the graph that a subclass builds.

    pipeline_config: its max_length bounds the positions. weights: the state dict, in the graph's names.
    """

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        session: InferenceSession,
        devices: Sequence[Device],
        huggingface_config: Any,
        weights: dict[str, WeightData],
        return_logits: ReturnLogits = ReturnLogits.VARIABLE,
        stages: Stages | None = None,
    ) -> None:
        self.pipeline_config, self.huggingface_config = pipeline_config, huggingface_config
        self.devices, self.state_dict = devices, weights
        self.stages = stages or NullStages()
        self.config = self.model_config_cls.initialize_from_config(pipeline_config, huggingface_config)
        self.config.finalize(huggingface_config, weights, return_logits)
        self.kv_params = self.config.get_kv_params()
        self.model = self.load_model(session)
        model_limit = int(huggingface_config.get_text_config().max_position_embeddings)
        self.freqs_cis = self._place_rope_tables(pipeline_config.max_length or model_limit)

    @staticmethod
    @abstractmethod
    def build_graph(config: Any) -> TracedGraph:
        """The architecture's graph builder."""

    @classmethod
    def get_num_layers(cls, huggingface_config: Any) -> int:
        return int(cls.model_config_cls.get_num_layers(huggingface_config))

    def load_model(self, session: InferenceSession) -> Model:
        """Compiles the graph while the weights are read; neither needs the other until the end.

        Raises:
            InputError: A tensor that is missing, misshapen or unexpected, before anything is compiled.
        """
        with self.stages.stage("graph"):
            traced = self.build_graph(self.config)
        check_weights(traced.weights, self.state_dict)
        compiling = session.compile_async(traced.graph)
        with self.stages.stage("weights"):
            self.weights = materialize(traced.weights, self.state_dict, self.devices)  # the model reads them in place
        return self._finish_loading(session, compiling, self.weights)

    def _finish_loading(self, session: InferenceSession, compiling: Any, weights: Mapping[str, Any]) -> Model:
        with self.stages.stage("compile", "a minute or two, once for each shape of model"):
            # Waiting for the compiler in this thread would make it deaf to Ctrl-C.
            return in_background(lambda: session.init(compiling, weights_registry=weights)).result()

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: dict[str, tuple[Any, ...]] | None = None,
        return_n_logits: int = 1,
    ) -> ModelInputs:
        """The inputs of a step that computes each context's `next_chunk`.

        Raises:
            ValueError: Not exactly one replica, no context, or no cache inputs.
        """
        if len(replica_batches) != 1 or not replica_batches[0] or kv_cache_inputs is None:
            raise ValueError("one replica with at least one context, and its KV cache inputs, are needed")
        contexts = replica_batches[0]
        positions = [np.arange(c.num_computed, c.num_computed + c.num_scheduled, dtype=np.uint32) for c in contexts]
        return self._inputs(
            tokens=self._place(np.concatenate([np.asarray(c.next_chunk, np.int64) for c in contexts])),
            lengths=[c.num_scheduled for c in contexts],
            positions=np.concatenate(positions),
            kv_cache_inputs=kv_cache_inputs,
            return_n_logits=return_n_logits,
        )

    def prepare_next_token_inputs(self, next_tokens: Buffer, prev_model_inputs: ModelInputs) -> ModelInputs:
        """One more token a row; the page tables must already reach one token further."""
        offsets = prev_model_inputs.input_row_offsets.to_numpy().astype(np.int64)
        lengths = np.diff(offsets)
        return self._inputs(
            tokens=next_tokens,
            lengths=[1] * len(lengths),
            positions=prev_model_inputs.position_ids.to_numpy()[0, offsets[1:] - 1] + np.uint32(1),
            kv_cache_inputs=advance(prev_model_inputs.kv_cache_inputs, self.kv_params, lengths.tolist()),
            return_n_logits=1,
        )

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        return ModelOutputs(*self.model.execute(*model_inputs.flatten()))

    def _inputs(
        self,
        tokens: Buffer,
        lengths: Sequence[int],
        positions: npt.NDArray[np.uint32],
        kv_cache_inputs: dict[str, tuple[Any, ...]],
        return_n_logits: int,
    ) -> ModelInputs:
        return ModelInputs(
            tokens=tokens,
            input_row_offsets=self._place(np.cumsum([0, *lengths]).astype(np.uint32)),
            return_n_logits=Buffer.from_numpy(np.array([return_n_logits], np.int64)),
            position_ids=self._place(positions[None]),
            freqs_cis=self.freqs_cis,
            signal_buffers=self.signal_buffers,
            kv_cache_inputs=kv_cache_inputs,
        )

    def _place(self, array: npt.NDArray[Any]) -> Buffer:
        """The array on the first device; on the CPU without a copy."""
        return Buffer.from_numpy(array).to(self.devices[0])

    def _place_rope_tables(self, num_positions: int) -> dict[str, list[Buffer]]:
        tables = self.config.rope_tables(num_positions)
        return {
            kind: [Buffer.from_numpy(table).to(device) for device in self.devices] for kind, table in tables.items()
        }
