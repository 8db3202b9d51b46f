"""Gemma 3's vision graph: the whole way from pixels to the tokens of an image.

Reference: transformers' modeling_siglip.py, and Gemma3MultiModalProjector in modeling_gemma3.py.
Shape suffixes: I images, C channels, P patches of an image, T patches of all images, D hidden, N heads, H head dim.
"""

from __future__ import annotations

from max.dtype import DType
from max.graph import Graph, TensorType, TensorValue, ops

from architectures.gemma3_multimodal.vision_config import VisionConfig
from architectures.layers.activations import ACTIVATIONS
from architectures.layers.image_attention import image_attention
from architectures.layers.kernels import extensions
from architectures.layers.linear import matmul
from architectures.layers.norm import RMSNorm
from architectures.layers.weights import WeightTable
from pipelines.loading.encodings import float32
from pipelines.loading.weight_spec import TracedGraph

TILE = 64
"""Columns that a GPU's matrix product processes at a time."""


def build_vision_graph(config: VisionConfig) -> TracedGraph:
    """Builds the graph from pixel values to features, on the first device.

    pixel_values: [num_images, channels, image_size, image_size] float32. Features: [num_images * mm_tokens_per_image,
    text_hidden_size] in config.dtype.
    """
    device = config.devices[0]
    pixel_values = TensorType(
        DType.float32, ["num_images", config.num_channels, config.image_size, config.image_size], device
    )
    weights = WeightTable(config.dtype, config.encoding, [device])
    with Graph("gemma3_vision", input_types=[pixel_values], custom_extensions=extensions([device])) as graph:
        graph.output(VisionTower(config, weights)(graph.inputs[0].tensor))
    return TracedGraph(graph, weights.specs)


class VisionTower:
    """The graph builder of one configuration: a SigLIP encoder, and the projection of its output to text tokens."""

    def __init__(self, config: VisionConfig, weights: WeightTable) -> None:
        self.config, self.weights = config, weights

    def __call__(self, pixel_values_ICXY: TensorValue) -> TensorValue:
        num_images = pixel_values_ICXY.shape[0]
        h_TD = self.embed(pixel_values_ICXY)
        for i in range(self.config.num_hidden_layers):
            h_TD = self.encoder_layer(h_TD, f"vision_tower.encoder.layers.{i}")
        h_TD = self.layer_norm(h_TD, "vision_tower.post_layernorm")
        side = self.config.patches_per_side
        return self.project(self.pool(h_TD.reshape((num_images, side, side, self.config.hidden_size))))

    def embed(self, pixel_values_ICXY: TensorValue) -> TensorValue:
        """Embeds each patch and adds the embedding of its position: [I, C, X, Y] -> [T, D].

        A convolution whose windows don't overlap is one product with the pixels of each window as a row.
        """
        config, name = self.config, "vision_tower.embeddings"
        num_images, side, size = pixel_values_ICXY.shape[0], config.patches_per_side, config.patch_size
        num_pixels = config.num_channels * size * size
        windows = pixel_values_ICXY.reshape((num_images, config.num_channels, side, size, side, size))
        rows = ops.permute(windows, [0, 2, 4, 1, 3, 5]).reshape((num_images * side * side, num_pixels))

        kernel_shape = [config.hidden_size, config.num_channels, size, size]
        kernel = self.weights.on_first_device(f"{name}.patch_embedding.weight", kernel_shape)
        bias = self.weights.on_first_device(f"{name}.patch_embedding.bias", [config.hidden_size])
        kernel_rows = _with_whole_tiles(kernel.reshape((config.hidden_size, num_pixels)))
        patches_TD = matmul(ops.cast(_with_whole_tiles(rows), config.dtype), float32.RECORD.matrix(kernel_rows)) + bias

        places_PD = self.weights.on_first_device(f"{name}.position_embedding.weight", [side * side, config.hidden_size])
        patches_IPD = patches_TD.reshape((num_images, side * side, config.hidden_size))
        return (patches_IPD + places_PD).reshape(patches_TD.shape)

    def encoder_layer(self, h_TD: TensorValue, name: str) -> TensorValue:
        """Applies attention and MLP, with a norm before each: [T, D] -> [T, D]."""
        h_TD = h_TD + self.attention(self.layer_norm(h_TD, f"{name}.layer_norm1"), f"{name}.self_attn")
        return h_TD + self.mlp(self.layer_norm(h_TD, f"{name}.layer_norm2"), f"{name}.mlp")

    def attention(self, x_TD: TensorValue, name: str) -> TensorValue:
        """Applies bidirectional attention within each image: [T, D] -> [T, D]."""
        config = self.config
        num_patches, size = config.patches_per_side**2, config.hidden_size
        heads = (x_TD.shape[0] // num_patches, num_patches, config.num_attention_heads, config.head_dim)
        q, k, v = (self.linear(x_TD, f"{name}.{part}_proj", size, size).reshape(heads) for part in "qkv")
        attended = image_attention(q, k, v, config.head_dim**-0.5).reshape(x_TD.shape)
        return self.linear(attended, f"{name}.out_proj", size, size)

    def mlp(self, x_TD: TensorValue, name: str) -> TensorValue:
        """Applies the feed-forward block, which has no gate: [T, D] -> [T, D]."""
        size, inner = self.config.hidden_size, self.config.intermediate_size
        x = ACTIVATIONS[self.config.hidden_act](self.linear(x_TD, f"{name}.fc1", size, inner))
        return self.linear(x, f"{name}.fc2", inner, size)

    def pool(self, h_IXYD: TensorValue) -> TensorValue:
        """Averages each square of patches that becomes one token: [I, X, Y, D] -> [images * tokens, D]."""
        size = self.config.patches_per_side // self.config.tokens_per_side
        return ops.avg_pool2d(h_IXYD, (size, size), stride=size).reshape((-1, self.config.hidden_size))

    def project(self, x_TD: TensorValue) -> TensorValue:
        """Normalizes and projects to the width of the text model: [T, D] -> [T, text_hidden_size]."""
        config, name = self.config, "multi_modal_projector"
        norm = RMSNorm(config.layer_norm_eps, weight_offset=1.0, multiply_before_cast=True)
        x_TD = norm.apply(x_TD, self.weights.on_first_device(f"{name}.mm_soft_emb_norm.weight", [config.hidden_size]))
        shape = [config.hidden_size, config.text_hidden_size]  # the one matrix that is published as [in, out]
        weight = ops.transpose(self.weights.on_first_device(f"{name}.mm_input_projection_weight", shape), 0, 1)
        return matmul(x_TD, float32.RECORD.matrix(weight))

    def linear(self, x: TensorValue, name: str, in_features: int, out_features: int) -> TensorValue:
        """Applies a matrix and its bias: [T, in_features] -> [T, out_features]."""
        weight = self.weights.matrix_on_first_device(f"{name}.weight", (out_features, in_features))
        return matmul(x, weight) + self.weights.on_first_device(f"{name}.bias", [out_features])

    def layer_norm(self, x_TD: TensorValue, name: str) -> TensorValue:
        """Normalizes each row, with weight and bias."""
        weight, bias = (
            self.weights.on_first_device(f"{name}.{part}", [self.config.hidden_size]) for part in ("weight", "bias")
        )
        return ops.layer_norm(x_TD, weight, bias, self.config.layer_norm_eps)


def _with_whole_tiles(x_RK: TensorValue) -> TensorValue:
    """Pads each row with zeros: no Hopper matrix product compiles for the odd number of a patch's pixels."""
    return ops.pad(x_RK, [0, 0, 0, -int(x_RK.shape[1]) % TILE])
