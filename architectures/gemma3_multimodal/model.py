"""The Gemma 3 pipeline model that reads images."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from max.driver import Buffer

from architectures.decoder.inputs import DecoderBuffers
from architectures.decoder.model import DECODER
from architectures.gemma3 import Gemma3Model
from architectures.gemma3.graph import build_graph
from architectures.gemma3_multimodal.vision_config import VisionConfig
from architectures.gemma3_multimodal.vision_graph import build_vision_graph
from pipelines.config import PipelineConfig
from pipelines.context import ImageSpan, TextContext
from pipelines.errors import InputError
from pipelines.loading.weight_spec import TracedGraph
from pipelines.pipeline_model import ModelInputs, ModelOutputs, PendingTokens

DECODER_FOR_IMAGES = "decoder_for_images"
VISION = "vision_tower"

NUM_KEPT_IMAGES = 16
"""Images whose features are kept beyond their request: the turns of a chat repeat them."""


class Gemma3MultimodalModel(Gemma3Model):
    """Gemma 3 with its vision tower. It has three graphs: for steps of text, for steps of images, and the tower's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._features: OrderedDict[bytes, Buffer] = OrderedDict()
        super().__init__(*args, **kwargs)

    @classmethod
    def trace_graphs(cls, config: Any, huggingface_config: Any) -> dict[str, TracedGraph]:
        """Traces all three graphs.

        Raises:
            InputError: The vision graph does not support a value in `vision_config`.
        """
        try:
            vision = VisionConfig.from_huggingface(
                huggingface_config, config.dtype, config.encoding.tower, config.devices
            )
        except ValueError as error:
            raise InputError(f"config.json: {error}") from error
        images = {DECODER_FOR_IMAGES: build_graph(config, bidirectional=True), VISION: build_vision_graph(vision)}
        return super().trace_graphs(config, huggingface_config) | images

    @classmethod
    def estimate_activation_memory(cls, pipeline_config: PipelineConfig, huggingface_config: Any) -> int:
        """That of a step of text or of one image's way through the tower, whichever is more, and the kept features."""
        config = cls.model_config_cls.initialize_from_config(pipeline_config, huggingface_config)
        vision = VisionConfig.from_huggingface(huggingface_config, config.dtype, config.encoding.tower, config.devices)
        of_text = super().estimate_activation_memory(pipeline_config, huggingface_config)
        num_kept = NUM_KEPT_IMAGES + pipeline_config.max_batch_size
        features_bytes = vision.mm_tokens_per_image * vision.text_hidden_size * config.dtype.size_in_bytes
        return max(of_text, vision.activation_bytes) + num_kept * features_bytes

    def required_graphs(self, context: TextContext) -> Sequence[str]:
        return self.graph_names if context.images else (DECODER,)

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: dict[str, tuple[Any, ...]] | None = None,
        return_n_logits: int = 1,
        pending: PendingTokens | None = None,
    ) -> DecoderBuffers:
        """Builds the inputs of a step, whose rows are all text or all images (or the ends of images)."""
        inputs = super().prepare_initial_token_inputs(replica_batches, kv_cache_inputs, return_n_logits, pending)
        images = [(context, image) for context in replica_batches[0] if (image := context.next_image)]
        if not images:
            return inputs
        rows = [self._scheduled_rows(context, image) for context, image in images]
        return dataclasses.replace(inputs, embeddings=self._joined(rows))

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Runs one step of text or of images."""
        inputs = self._completed(model_inputs)
        return self._run(DECODER if inputs.embeddings is None else DECODER_FOR_IMAGES, inputs)

    def _scheduled_rows(self, context: TextContext, image: ImageSpan) -> Buffer:
        """View of the features of those of the image's tokens that the step computes."""
        start = context.num_computed_tokens - image.start
        return self.features(image)[start : start + context.num_scheduled_tokens, :]

    def features(self, image: ImageSpan) -> Buffer:
        """Vision tower's output for an image, [tokens, hidden_size] in the type of the activations, on the device.

        The image keeps it in place of its pixels, so that it outlives a preemption.
        """
        if image.features is None:
            image.features = self._kept_features(image)
            image.pixel_values = None
        return image.features

    def _kept_features(self, image: ImageSpan) -> Buffer:
        if image.image_hash not in self._features:
            assert image.pixel_values is not None
            (features,) = self._execute(VISION, self._place(image.pixel_values[None]))
            self._features[image.image_hash] = features
        self._features.move_to_end(image.image_hash)
        if len(self._features) > NUM_KEPT_IMAGES:
            self._features.popitem(last=False)
        return self._features[image.image_hash]

    def _joined(self, rows: Sequence[Buffer]) -> Buffer:
        """Copies the rows of all images into one buffer on the device."""
        num_rows, width = sum(row.shape[0] for row in rows), rows[0].shape[1]
        joined = Buffer(self.config.dtype, [num_rows, width], self.devices[0])
        ends = np.cumsum([row.shape[0] for row in rows]).tolist()
        for row, end in zip(rows, ends, strict=True):
            joined[end - row.shape[0] : end, :].inplace_copy_from(row)
        self.devices[0].synchronize()  # the copies run beside the caller, and on the CPU beside the next graph too
        return joined
