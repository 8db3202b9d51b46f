"""A model whose checkpoint is open: its record, its tensors, and the graphs that were compiled for it ahead of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from max.driver import Device
from max.graph.weights import WeightData

from kv_cache import KVCacheParams
from pipelines.config import PipelineConfig, open_devices
from pipelines.errors import InputError
from pipelines.loading.artifacts.artifacts import Artifacts
from pipelines.loading.artifacts.identity import run_identity
from pipelines.loading.artifacts.kept import KeptGraphs
from pipelines.loading.artifacts.target import cpu_features, target_of
from pipelines.loading.checkpoint import Checkpoint, resolve_config
from pipelines.loading.device_memory import are_tables_on_device
from pipelines.loading.gguf.file import open_gguf_state_dict
from pipelines.loading.graphs import Graphs
from pipelines.loading.weight_cache.files import graphs_folder
from pipelines.loading.weight_spec import TracedGraph
from pipelines.loading.weights import open_state_dict
from pipelines.pipeline_model import PipelineModel
from pipelines.registry import Registry, SupportedArchitecture, choose_encoding
from pipelines.sampling.device.graphs import SAMPLER, build_graphs
from pipelines.stages import Stages


@dataclass(frozen=True)
class OpenedModel:
    """A model as it is found: nothing is planned or compiled, and no value of its weights has been read.

    config: with its encoding set. weight_paths: the files of the weights. state_dict: their tensors, in the graph's
    names.
    """

    config: PipelineConfig
    checkpoint: Checkpoint
    architecture: SupportedArchitecture
    devices: Sequence[Device]
    weight_paths: Sequence[Path]
    state_dict: dict[str, WeightData]
    kv_params: KVCacheParams

    @classmethod
    def open(cls, config: PipelineConfig, stages: Stages) -> OpenedModel:
        """Finds the model of a run, fetches its files and maps its tensors.

        Raises:
            InputError: The configuration or the checkpoint can't be used.
        """
        with stages.stage("config"):
            checkpoint = resolve_config(config.model, config.revision, config.trust_remote_code, config.weight_path)
            architecture = Registry.load(config.custom_architectures).find(checkpoint.architectures)
            chosen = choose_encoding(architecture, config.device_kind, config.quantization_encoding, checkpoint.dtype)
            config = dataclasses.replace(config, quantization_encoding=chosen)
            devices = open_devices(config)
            kv_params = _kv_params(architecture, config, checkpoint)
        with stages.stage("checkpoint"):
            weight_paths = checkpoint.download_weights()
            state_dict = _open_state_dict(checkpoint, architecture, weight_paths)
        return cls(config, checkpoint, architecture, devices, weight_paths, state_dict, kv_params)

    @property
    def identity(self) -> dict[str, str]:
        """All that the graphs of the run follow from."""
        return run_identity(
            self.config,
            self.architecture,
            self.checkpoint.huggingface_config,
            self.state_dict,
            self.kv_params,
            target_of(self.devices),
        )

    def trace(self) -> dict[str, TracedGraph]:
        """Traces all graphs of the model, by name, and on accelerators those of the sampler.

        Raises:
            InputError: The graph does not support a value of config.json.
        """
        model: type[PipelineModel] = self.architecture.pipeline_model
        placement = {"tables_on_device": True} if self.tables_on_device else {}
        graphs = model.trace(self.config, self.checkpoint.huggingface_config, self.state_dict, **placement)
        if not self.devices[0].is_host:
            graphs[SAMPLER] = TracedGraph(build_graphs(self.vocab_size, self.config.device_refs[0]), ())
        return graphs

    @property
    def tables_on_device(self) -> bool:
        """Whether the rows of the model's lookup tables, if it has any, are read on the first device."""
        tables = [self.state_dict[name] for name in self.architecture.lookup_tables if name in self.state_dict]
        return bool(tables) and are_tables_on_device(tables, self.devices[0])

    @property
    def vocab_size(self) -> int:
        """Number of logits of a position."""
        vocab_size: int = self.checkpoint.huggingface_config.get_text_config().vocab_size
        return vocab_size

    def open_graphs(self, stages: Stages) -> Graphs:
        """Opens the graphs that were compiled ahead of time, if the run names some, or those of an earlier start.

        Raises:
            InputError: The run names some that were made for another run or another machine, or a file is missing or
                damaged.
        """
        if self.config.artifacts is None:
            # The sources of others need not be in one package: what they follow from is not known.
            has_others_code = self.config.custom_architectures or self.config.trust_remote_code
            run = self.identity | ({"lookup_tables": "device"} if self.tables_on_device else {})
            return KeptGraphs(None if has_others_code else graphs_folder(), run, self.trace, stages)
        artifacts = Artifacts.open(Path(self.config.artifacts), self.identity, cpu_features())
        artifacts.install_libraries()
        return artifacts


def _kv_params(architecture: SupportedArchitecture, config: PipelineConfig, checkpoint: Checkpoint) -> KVCacheParams:
    try:
        arch_config = architecture.config.initialize_from_config(config, checkpoint.huggingface_config)
        return arch_config.get_kv_params()  # type: ignore[no-any-return]
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{checkpoint.config_source}: {error}") from error


def _open_state_dict(
    checkpoint: Checkpoint, architecture: SupportedArchitecture, weight_paths: Sequence[Path]
) -> dict[str, WeightData]:
    """Maps the files of the weights, and gives their tensors the graph's names.

    Raises:
        InputError: A file is damaged, a tensor is unknown, or the architecture doesn't read files of the format.
    """
    adapt = architecture.weight_adapters.get(checkpoint.weights_format)
    if adapt is None:
        formats = " and ".join(architecture.weight_adapters)
        raise InputError(f"{architecture.name} can't be read from {checkpoint.weights_format} files, only {formats}")
    if checkpoint.gguf is not None:
        return open_gguf_state_dict(checkpoint.gguf, adapt, checkpoint.huggingface_config)
    return open_state_dict(weight_paths, adapt, checkpoint.huggingface_config)
