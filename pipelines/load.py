"""Loading of a pipeline: from a configuration to one that is ready to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from max.engine import InferenceSession
from max.graph.weights import WeightData

from kv_cache import CachePlan, KVCacheManager, plan_cache
from pipelines.background import in_background
from pipelines.config import AUTO, PipelineConfig
from pipelines.engine.device_choice import DeviceTokenSampler
from pipelines.errors import UTILIZATION, InputError, loading_onto_devices
from pipelines.loading.blocks import stored_type
from pipelines.loading.checkpoint import Checkpoint
from pipelines.loading.device_memory import cache_bytes, placed_bytes, read_device_memory
from pipelines.loading.encodings import encoding
from pipelines.loading.graphs import Graphs, SomeGraphs
from pipelines.loading.memory import available_bytes
from pipelines.loading.weight_cache.cache import WeightCache, checkpoint_key, package_hash
from pipelines.loading.weight_cache.files import weights_folder
from pipelines.opened_model import OpenedModel
from pipelines.registry import SupportedArchitecture
from pipelines.sampling.defaults import SamplingDefaults
from pipelines.sampling.device.graphs import SAMPLER, sampler_bytes
from pipelines.sampling.device.sampler import DeviceSampler
from pipelines.stages import NullStages, Stages
from pipelines.text.gguf_tokenizer import CHAT_TEMPLATE, gguf_tokenizer
from pipelines.text.prompts import ImageProcessor, PromptEncoder
from pipelines.text.tokenizer import TextTokenizer
from pipelines.text_generation import TextGenerationPipeline

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
HOST_SHARE = 0.5
"""The part of the host's free memory that a cache may take."""


def load_pipeline(
    config: PipelineConfig, stages: Stages | None = None, warm_up: bool = False
) -> TextGenerationPipeline:
    """Loads the model that `config` names: its checkpoint, its compiled graph, its cache.

    Args:
        config: The run.
        stages: Receives reports about the stages.
        warm_up: Whether to compile all graphs of the model; otherwise those for images, for example, are compiled when
            the first request that needs them is submitted.

    Raises:
        InputError: The configuration or the checkpoint can't be used; the message is one line with the remedy.
    """
    pipe = prepare_pipeline(config, stages).load()
    if warm_up:
        pipe.warm_up()
    return pipe


@dataclass(frozen=True)
class PreparedPipeline(OpenedModel):
    """A run with an open checkpoint and a planned cache; nothing is compiled yet.

    config: with its max_length set too. prompts: checks and encodes prompts, before the model is loaded.
    """

    graphs: Graphs
    plan: CachePlan
    prompts: PromptEncoder
    sampling_defaults: SamplingDefaults
    stages: Stages

    def load(self) -> TextGenerationPipeline:
        """Compiles the graph, loads the weights, allocates the cache.

        Raises:
            InputError: A tensor is missing, misshapen or unexpected, or a device runs out of memory.
        """
        with loading_onto_devices():
            return self._load()

    def _load(self) -> TextGenerationPipeline:
        session = InferenceSession(devices=self.devices)
        huggingface_config = self.checkpoint.huggingface_config
        model = self.architecture.pipeline_model(
            self.config,
            session,
            self.devices,
            huggingface_config,
            self.state_dict,
            stages=self.stages,
            open_weight_cache=self._open_weight_cache,
            graphs=SomeGraphs(self.graphs, [name for name in self.graphs.names if name != SAMPLER]),
        )
        sampler = self._load_sampler(session)
        with self.stages.stage("cache"):
            caching = self.config.enable_prefix_caching
            cache = KVCacheManager(self.kv_params, self.plan.num_pages, self.devices, caching)
        return TextGenerationPipeline(self.config, model, cache, self.prompts, self.sampling_defaults, sampler)

    def _load_sampler(self, session: InferenceSession) -> DeviceTokenSampler | None:
        """Compiles the sampler for the device of the logits; None on the CPU, where the host's is faster."""
        if self.devices[0].is_host:
            return None
        with self.stages.stage(self.graphs.stage[0], "the sampler"):
            compiling = self.graphs.compile_async(SAMPLER, session)
            # A thread that waits for the compiler does not notice Ctrl-C.
            models = in_background(lambda: session.init_all(compiling)).result()
        self.graphs.keep()
        return DeviceTokenSampler(DeviceSampler(models, self.devices[0], self.prompts.vocab_size))

    def _open_weight_cache(self) -> WeightCache:
        config = self.config
        if not config.enable_weight_cache:
            return WeightCache.open(None, {})
        key = checkpoint_key(
            self.weight_paths,
            model=self.checkpoint.name,
            architecture=package_hash(self.architecture.config.__module__),
            encoding=config.quantization_encoding,
            head_encoding=config.head_encoding,
            devices=config.devices,
        )
        return WeightCache.open(weights_folder(), key)


def prepare_pipeline(config: PipelineConfig, stages: Stages | None = None) -> PreparedPipeline:
    """Does the part of `load_pipeline` that takes seconds and finds errors in configuration and checkpoint.

    Raises:
        InputError: As `load_pipeline`.
    """
    stages = stages or NullStages()
    opened = OpenedModel.open(config, stages)
    graphs = opened.open_graphs(stages)
    checkpoint = opened.checkpoint
    with stages.stage("tokenizer"):
        tokenizer = _tokenizer(opened.config, checkpoint)
    plan = _plan(opened, graphs)
    stages.note(plan.describe(opened.kv_params))
    for note in _table_notes(opened, graphs):
        stages.note(note)
    config = dataclasses.replace(opened.config, max_length=plan.max_length)
    prompts = PromptEncoder(
        tokenizer,
        vocab_size=opened.vocab_size,
        max_length=plan.max_length,
        is_instruction_model=tokenizer.has_chat_template
        and (config.chat_template is not None or not checkpoint.is_base_model),
        load_image_processor=_image_processor_loader(opened.architecture, checkpoint),
    )
    return PreparedPipeline(
        **vars(opened) | {"config": config},
        graphs=graphs,
        plan=plan,
        prompts=prompts,
        sampling_defaults=_sampling_defaults(config, checkpoint),
        stages=stages,
    )


def _tokenizer(config: PipelineConfig, checkpoint: Checkpoint) -> TextTokenizer:
    """Reads the tokenizer and its chat template: those of the folder, and what it lacks from the GGUF file."""
    gguf, eos_token_ids = checkpoint.gguf, checkpoint.eos_token_ids
    if gguf is not None and not any((checkpoint.path / name).is_file() for name in TOKENIZER_FILES):
        return TextTokenizer(gguf_tokenizer(gguf.metadata, config.chat_template), eos_token_ids)
    read = partial(TextTokenizer.from_pretrained, checkpoint.path, config.trust_remote_code, eos_token_ids)
    tokenizer = read(config.chat_template)
    if gguf is not None and not tokenizer.has_chat_template and CHAT_TEMPLATE in gguf.metadata:
        return read(gguf.metadata.text(CHAT_TEMPLATE))
    return tokenizer


def _sampling_defaults(config: PipelineConfig, checkpoint: Checkpoint) -> SamplingDefaults:
    if config.generation_config == "none":
        return SamplingDefaults()
    return SamplingDefaults.from_generation_config(checkpoint.generation_config)


def _image_processor_loader(
    architecture: SupportedArchitecture, checkpoint: Checkpoint
) -> Callable[[], ImageProcessor] | None:
    """Returns a loader of the image processor, whose imports cost a second that prompts without images can save."""
    if architecture.image_processor is None:
        return None
    return partial(architecture.image_processor, checkpoint.path, checkpoint.huggingface_config)


def _plan(opened: OpenedModel, graphs: Graphs) -> CachePlan:
    """Plans the cache within the memory that the weights leave free.

    Raises:
        InputError: max_length is more than the model's limit, or does not fit in memory.
    """
    config = opened.config
    model_limit = opened.checkpoint.huggingface_config.get_text_config().max_position_embeddings
    if config.max_length is not None and config.max_length > model_limit:
        raise InputError(
            f"max_length (--max-length) {config.max_length} is more than the {model_limit} tokens of the model"
        )
    available, share = _cache_memory(opened, graphs)
    try:
        return plan_cache(
            opened.kv_params,
            max_length=config.max_length or model_limit,
            may_shorten=config.max_length is None,
            max_batch_size=config.max_batch_size,
            max_step_tokens=config.max_step_tokens,
            memory_bytes=config.kv_cache_memory,
            available_bytes=available,
            share=share,
            remedy=None if opened.devices[0].is_host else f"raise {UTILIZATION}",
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _cache_memory(opened: OpenedModel, graphs: Graphs) -> tuple[int, float]:
    """Memory beside the weights, and the share of it that the cache may take.

    On the host, which belongs to others too, half of what is free; of GPUs what steps and the unused share leave.

    Raises:
        InputError: A GPU has too little.
    """
    config, architecture, devices = opened.config, opened.architecture, opened.devices
    if devices[0].is_host:
        in_memory = [item for item in opened.state_dict.items() if item[0] not in architecture.lookup_tables]
        weights_bytes = sum(weight_bytes(config, architecture, name, data) for name, data in in_memory)
        return max(0, available_bytes() - weights_bytes), HOST_SHARE
    model, huggingface_config = architecture.pipeline_model, opened.checkpoint.huggingface_config
    placed = placed_bytes([spec for name in graphs.names for spec in graphs.weights(name)], len(devices))
    step_bytes = model.estimate_activation_memory(config, huggingface_config)
    step_bytes += sampler_bytes(opened.vocab_size, config.max_batch_size)
    memory = read_device_memory(devices, placed, step_bytes)
    return cache_bytes(memory, config.device_memory_utilization, config.kv_cache_memory), 1.0


def _table_notes(opened: OpenedModel, graphs: Graphs) -> list[str]:
    """Says where a run on GPUs reads the rows of lookup tables."""
    if opened.devices[0].is_host:
        return []
    specs = {spec.name: spec for name in graphs.names for spec in graphs.weights(name)}
    tables = [specs[name] for name in opened.architecture.lookup_tables if name in specs]
    return [f"{spec.name}: in the memory of the {'host' if spec.is_on_host else 'first GPU'}" for spec in tables]


def weight_bytes(config: PipelineConfig, architecture: SupportedArchitecture, name: str, data: WeightData) -> int:
    """Memory that a weight takes in a run whose encoding is chosen, all devices together.

    Args:
        config: The run.
        architecture: The model's record.
        name: Its name in the graph.
        data: The checkpoint's tensor.
    """
    record = encoding(config.quantization_encoding)
    if name in architecture.head_weights:
        record = record.head if config.head_encoding == AUTO else encoding(config.head_encoding)
    return record.on(config.device_kind).num_bytes([int(dim) for dim in data.shape], stored_type(data))
