"""The Gemma 3 pipeline model that reads images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from max.engine import InferenceSession, Model

from architectures.decoder.inputs import ImageInputs
from architectures.gemma3 import Gemma3Model
from architectures.gemma3.graph import build_graph
from architectures.gemma3_multimodal.vision_config import VisionConfig
from architectures.gemma3_multimodal.vision_graph import build_vision_graph
from architectures.gemma3_multimodal.vision_weight_names import PREFIXES
from pipelines.context import ImageSpan, TextContext
from pipelines.errors import InputError
from pipelines.loading.weights import check_weights, materialize
from pipelines.pipeline_model import ModelInputs, ModelOutputs

Features = npt.NDArray[np.float32]

NUM_KEPT_IMAGES = 16
"""Whose features are kept: an image may be computed in parts, and again after its request was preempted."""


class Gemma3MultimodalModel(Gemma3Model):
    """Gemma 3 with its vision tower. Three graphs: for steps of text, for steps of images, and the tower's own.

    The latter two are compiled when the first image comes: who asks about text alone does not wait for them.
    """

    def load_model(self, session: InferenceSession) -> Model:
        """The text model; the weights of the image side are left for later."""
        of_images = tuple(PREFIXES.values())
        self.session = session
        self.vision_state_dict = {name: data for name, data in self.state_dict.items() if name.startswith(of_images)}
        self.state_dict = {name: data for name, data in self.state_dict.items() if name not in self.vision_state_dict}
        self._features: OrderedDict[bytes, Features] = OrderedDict()
        return super().load_model(session)

    @cached_property
    def image_model(self) -> Model:
        """The text model for steps whose rows are images; it has the weights of `model`."""
        with self.stages.stage("graph", "images"):
            traced = build_graph(self.config, of_images=True)
        weights = {spec.name: self.weights[spec.name] for spec in traced.weights}
        return self._finish_loading(self.session, self.session.compile_async(traced.graph), weights)

    @cached_property
    def vision_model(self) -> Model:
        """The vision tower.

        Raises:
            InputError: A tensor that is missing, misshapen or unexpected, or a value in `vision_config` that the graph
                can't honour.
        """
        config = self.config
        with self.stages.stage("graph", "vision tower"):
            try:
                vision = VisionConfig.from_huggingface(
                    self.huggingface_config, config.dtype, config.matrix_dtype, config.devices
                )
            except ValueError as error:
                raise InputError(f"config.json: {error}") from error
            traced = build_vision_graph(vision)
        check_weights(traced.weights, self.vision_state_dict)
        compiling = self.session.compile_async(traced.graph)
        with self.stages.stage("weights", "vision tower"):
            self.vision_weights = materialize(traced.weights, self.vision_state_dict, self.devices)
        return self._finish_loading(self.session, compiling, self.vision_weights)

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: dict[str, tuple[Any, ...]] | None = None,
        return_n_logits: int = 1,
    ) -> ModelInputs:
        """As for text; the rows of a step are images, or parts of images to their ends, either all or none."""
        inputs = super().prepare_initial_token_inputs(replica_batches, kv_cache_inputs, return_n_logits)
        contexts = replica_batches[0]
        images = [context.next_image for context in contexts]
        if images[0] is None:
            return inputs
        rows = [self._rows(image, context) for image, context in zip(images, contexts, strict=True) if image]
        return ImageInputs.of(inputs, self._place(np.concatenate(rows)))

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        if isinstance(model_inputs, ImageInputs):
            return ModelOutputs(*self.image_model.execute(*model_inputs.flatten()))
        return super().execute(model_inputs)

    def _rows(self, image: ImageSpan, context: TextContext) -> Features:
        """The features of the image's tokens that the step computes."""
        start = context.num_computed - image.start
        return self.features(image)[start : start + context.num_scheduled]

    def features(self, image: ImageSpan) -> Features:
        """What the vision tower makes of an image, [tokens, hidden_size] float32."""
        if image.digest not in self._features:
            (features,) = self.vision_model.execute(self._place(image.pixel_values[None]))
            self._features[image.digest] = features.to_numpy().copy()
        self._features.move_to_end(image.digest)
        if len(self._features) > NUM_KEPT_IMAGES:
            self._features.popitem(last=False)
        return self._features[image.digest]
