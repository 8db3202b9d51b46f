"""The image side of Gemma 3 equals transformers': pixels, features, and the attention between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from marks import slow
from max.driver import CPU
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef, Dim, Graph, Shape, TensorType
from max.graph.weights import WeightData
from PIL import Image
from published import FOLDERS, tensors_of
from tiny_multimodal import (
    IMAGE_SIZE,
    tiny_config,
    write_image_processor,
    write_tiny_gemma3_multimodal,
    write_tokenizer,
)
from transformers import AutoConfig, AutoProcessor, CLIPVisionConfig, Gemma3ForConditionalGeneration

from architectures.gemma3_multimodal.image_processor import ImageProcessor
from architectures.gemma3_multimodal.vision_config import VisionConfig
from architectures.gemma3_multimodal.vision_graph import build_vision_graph
from architectures.gemma3_multimodal.weight_adapters import adapt_vision_name
from architectures.layers import kernels
from architectures.layers.image_attention import image_attention
from pipelines import InputError
from pipelines.loading.encoding import Encoding
from pipelines.loading.encodings import encoding
from pipelines.loading.safetensors_file import DTYPES
from pipelines.loading.weights import check_weights, materialize, open_state_dict, rename

pytestmark = pytest.mark.slow  # together they take seconds

Values = npt.NDArray[np.float32]

TOLERANCE = 1e-4
"""Tolerance as a fraction of the largest feature."""
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PUBLISHED = [f"google__gemma-3-{size}-it" for size in ("4b", "12b", "27b")]


def adapt_vision(tensors: dict[str, WeightData], huggingface_config: Any) -> dict[str, WeightData]:
    """The image side alone."""
    return rename(tensors, adapt_vision_name)


@pytest.fixture(scope="module", params=STORED)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Encoding]:
    """A tiny model, and the encoding of its matrices."""
    folder = tmp_path_factory.mktemp(f"tiny-multimodal-{request.param}")
    write_tiny_gemma3_multimodal(folder, STORED[request.param])
    return folder, encoding(request.param)


@pytest.fixture(scope="module")
def tower(checkpoint: tuple[Path, Encoding]) -> Iterator[Model]:
    folder, matrix_encoding = checkpoint
    huggingface_config = AutoConfig.from_pretrained(folder)
    config = VisionConfig.from_huggingface(huggingface_config, DType.float32, matrix_encoding, [DeviceRef.CPU()])
    traced = build_vision_graph(config)
    state_dict = open_state_dict([folder / "model.safetensors"], adapt_vision, huggingface_config)
    check_weights(traced.weights, state_dict)
    weights = materialize(traced.weights, state_dict, [CPU()])
    yield InferenceSession(devices=[CPU()]).load(traced.graph, weights_registry=weights)


@pytest.mark.compiles
@torch.inference_mode()
def test_features_equal_transformers(checkpoint: tuple[Path, Encoding], tower: Model) -> None:
    folder, _ = checkpoint
    reference = Gemma3ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for num_images in (1, 3):
        shape = (num_images, 3, IMAGE_SIZE, IMAGE_SIZE)
        pixel_values = np.random.default_rng(num_images).uniform(-1, 1, shape).astype(np.float32)
        theirs = reference.get_image_features(torch.from_numpy(pixel_values)).pooler_output.flatten(0, 1).numpy()
        ours = tower.execute(pixel_values)[0].to_numpy()
        assert ours.shape == theirs.shape == (num_images * 16, 192)
        assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max(), f"{num_images} images"


@pytest.mark.compiles
def test_attention_of_any_size_equals_numpys() -> None:
    device = DeviceRef.CPU()
    heads = TensorType(DType.float32, ["images", "patches", "heads", "head_dim"], device)
    with Graph("attention", input_types=[heads] * 3, custom_extensions=kernels.extensions([device])) as graph:
        q, k, v = (value.tensor for value in graph.inputs)
        graph.output(image_attention(q, k, v, 0.25))
    model = InferenceSession(devices=[CPU()]).load(graph)
    rng = np.random.default_rng(0)
    for shape in [(1, 1, 1, 1), (2, 1, 3, 18), (1, 33, 2, 7), (3, 130, 2, 72), (1, 200, 1, 129), (0, 5, 2, 8)]:
        for size in (1, 10):  # at 10 the scores are too large to be exponents as they are
            q, k, v = (rng.standard_normal(shape).astype(np.float32) * factor for factor in (size, size, 1))
            ours, exact = model.execute(q, k, v)[0].to_numpy(), attention(q, k, v, 0.25)
            assert ours.shape == shape
            assert np.abs(ours - exact).max(initial=0) <= TOLERANCE * np.abs(exact).max(initial=0), (shape, size)


def attention(q: Values, k: Values, v: Values, scale: float) -> npt.NDArray[np.float64]:
    q64, k64, v64 = (values.astype(np.float64) for values in (q, k, v))
    scores = np.einsum("ipnh,iqnh->inpq", q64, k64) * scale
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("inpq,iqnh->ipnh", exponentials / exponentials.sum(axis=-1, keepdims=True), v64)


@pytest.mark.parametrize("matrices", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", [DeviceRef.CPU(), DeviceRef.GPU()], ids=["cpu", "gpu"])
@pytest.mark.parametrize("name", [PUBLISHED[0], *slow(*PUBLISHED[1:])])
def test_a_published_tower_traces_and_finds_all_its_weights(name: str, device: DeviceRef, matrices: str) -> None:
    record = encoding(matrices)
    activations = record.activation_dtypes["cpu" if device.is_cpu() else "gpu"]
    huggingface_config = AutoConfig.from_pretrained(FOLDERS[name])
    traced = build_vision_graph(VisionConfig.from_huggingface(huggingface_config, activations, record, [device]))
    check_weights(traced.weights, shapes_of(name))
    (features,) = traced.graph.output_types
    assert (features.dtype, features.device) == (activations, device)
    assert str(features.shape[0]) == str(Dim("num_images") * 256)
    assert features.shape[1] == huggingface_config.text_config.hidden_size


def shapes_of(name: str, file: str = "tensors.json") -> dict[str, WeightData]:
    """The image side of a checkpoint, without data."""
    tensors = tensors_of(FOLDERS[name], file)
    adapted = {adapt_vision_name(tensor): tensor for tensor in tensors}
    adapted.pop(None)
    return {
        graph_name: WeightData(None, tensor, DTYPES[tensors[tensor][0]], Shape(tensors[tensor][1]))  # type: ignore
        for graph_name, tensor in adapted.items()
    }


def test_names_that_transformers_5_has_are_mapped_to_the_same_weights() -> None:
    files = ("tensors.json", "tensors_transformers5.json")
    hub, saved = ({n: tuple(w.shape) for n, w in shapes_of(PUBLISHED[0], file).items()} for file in files)
    assert hub == saved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_use_head": True}, "vision_use_head true"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'"),
        ({"image_size": 900}, "image_size 900 is not a multiple of patch_size 14"),
        ({"image_size": [896, 448]}, r"image_size \[896, 448\]"),
        ({"num_attention_heads": 7}, "hidden_size 1152 is not a multiple of the 7 heads"),
        ({"mm_tokens_per_image": 200}, "mm_tokens_per_image 200"),
        ({"mm_tokens_per_image": 9}, "mm_tokens_per_image 9"),
    ],
)
def test_what_the_tower_cannot_honour_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    huggingface_config = AutoConfig.from_pretrained(FOLDERS[PUBLISHED[0]])
    for field, value in changes.items():
        setattr(huggingface_config if field.startswith("mm_") else huggingface_config.vision_config, field, value)
    with pytest.raises(ValueError, match=message):
        VisionConfig.from_huggingface(huggingface_config, DType.float32, encoding("float32"), [DeviceRef.CPU()])


def test_a_tower_of_another_kind_is_refused_by_name() -> None:
    huggingface_config = AutoConfig.from_pretrained(FOLDERS[PUBLISHED[0]])
    huggingface_config.vision_config = CLIPVisionConfig()
    with pytest.raises(ValueError, match="model_type 'clip_vision_model'"):
        VisionConfig.from_huggingface(huggingface_config, DType.float32, encoding("float32"), [DeviceRef.CPU()])


def random_image(mode: str, width: int, height: int) -> Image.Image:
    values = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def test_pixels_and_tokens_equal_those_of_transformers_processor(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    write_image_processor(tmp_path)
    write_tokenizer(tmp_path)
    reference, processor = (
        AutoProcessor.from_pretrained(tmp_path),
        ImageProcessor.from_checkpoint(tmp_path, tiny_config()),
    )
    sizes = [("RGB", 56, 56), ("RGB", 300, 20), ("L", 31, 200), ("RGBA", 57, 55), ("P", 90, 90), ("CMYK", 1, 1)]
    images = [random_image(*size) for size in sizes]
    text = "w5 " + " w7 ".join([processor.placeholder] * len(images)) + "\nw6"
    theirs = reference(images=images, text=text, add_special_tokens=False)
    for image, pixel_values in zip(images, theirs["pixel_values"], strict=True):
        ours = processor.process(image).pixel_values
        assert ours.dtype == np.float32
        assert np.array_equal(ours, pixel_values)
    tokens = reference.tokenizer(processor.expand_placeholders(text), add_special_tokens=False).input_ids
    assert tokens == theirs["input_ids"][0]
    assert tokens.count(processor.image_token_id) == len(images) * processor.num_image_tokens


def test_what_a_checkpoint_does_not_say_is_as_published(tmp_path: Path) -> None:
    processor = ImageProcessor.from_checkpoint(tmp_path, AutoConfig.from_pretrained(FOLDERS[PUBLISHED[0]]))
    image = random_image("RGB", 640, 480)
    resized = np.asarray(image.resize((896, 896), Image.Resampling.BILINEAR), np.float64).transpose(2, 0, 1)
    assert np.abs(processor.process(image).pixel_values - (resized / 255 - 0.5) / 0.5).max() <= 1e-6
    tokens = "<start_of_image>" + "<image_soft_token>" * 256 + "<end_of_image>"
    assert processor.expand_placeholders("a <start_of_image> b") == f"a \n\n{tokens}\n\n b"
    assert processor.image_token_id == 262144


def test_the_tokens_of_an_image_are_those_that_the_tokenizer_names(tmp_path: Path) -> None:
    named = {"boi_token": "<b>", "extra_special_tokens": {"image_token": "<i>", "eoi_token": "<e>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    processor = ImageProcessor.from_checkpoint(tmp_path, tiny_config())
    assert processor.expand_placeholders("<b>") == "\n\n<b>" + "<i>" * 16 + "<e>\n\n"


def test_a_hash_tells_images_apart_and_nothing_else(tmp_path: Path) -> None:
    processor, image = ImageProcessor.from_checkpoint(tmp_path, tiny_config()), random_image("RGB", 80, 60)
    first, again = processor.process(image), processor.process(image.copy())
    other = processor.process(random_image("RGB", 60, 80))
    assert first.image_hash == again.image_hash != other.image_hash
    assert len(first.image_hash) == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_pan_and_scan": True}, "do_pan_and_scan true"),
        ({"size": {"height": 28, "width": 56}}, r"shape \[3, 28, 56\], but the model takes \[3, 56, 56\]"),
        ({"do_resize": False}, r"shape \[3, 1, 1\]"),
        ({"image_mean": [0.5, 0.5]}, "can't be used"),
    ],
)
def test_an_image_processor_that_does_not_fit_is_refused_in_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_image_processor(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as refusal:
        ImageProcessor.from_checkpoint(tmp_path, tiny_config())
    assert "\n" not in str(refusal.value)


def test_a_damaged_image_processor_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match="can't be used"):
        ImageProcessor.from_checkpoint(tmp_path, tiny_config())


def test_images_are_processed_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
        "from pathlib import Path; from PIL import Image\n"
        "from transformers import Gemma3Config\n"
        "from architectures.gemma3_multimodal.image_processor import ImageProcessor\n"
        "config = Gemma3Config(vision_config={'image_size': 28, 'model_type': 'siglip_vision_model'})\n"
        "processor = ImageProcessor.from_checkpoint(Path('nowhere'), config)\n"
        "print(processor.process(Image.new('RGB', (9, 9))).pixel_values.shape)"
    )
    environment = dict(os.environ)  # an engine opened in this process has set PYTHONEXECUTABLE behind Python's back
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stdout) == (0, "(3, 28, 28)\n"), result.stderr
