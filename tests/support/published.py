"""Published models without their weights: config.json, and the names, types and shapes of their tensors."""

from __future__ import annotations

import json
import re
from pathlib import Path

from max.graph import Shape
from max.graph.weights import WeightData
from transformers import AutoConfig

from pipelines import PipelineConfig
from pipelines.loading.encodings import encoding
from pipelines.loading.encodings.float8_e4m3fn import Float8Config
from pipelines.loading.safetensors_file import DTYPES
from pipelines.pipeline_model import ReturnLogits
from pipelines.registry import Registry, SupportedArchitecture

FOLDERS = {path.name: path for path in sorted((Path(__file__).parents[1] / "configs").iterdir())}
REFUSED = {"google__gemma-4-26B-A4B", "google__gemma-4-26B-A4B-it"}  # experts of a kind that is not built
SUPPORTED = {name: folder for name, folder in FOLDERS.items() if name not in REFUSED}
FLOAT8_TWINS = {  # their tensors are those of the bfloat16 model, the projections in float8
    "Qwen__Qwen3-32B-FP8": "Qwen__Qwen3-32B",
    "Qwen__Qwen3-30B-A3B-FP8": "Qwen__Qwen3-30B-A3B",
}

Tensors = dict[str, tuple[str, list[int]]]


def architecture_of(folder: Path) -> SupportedArchitecture:
    return Registry.load().find(json.loads((folder / "config.json").read_text())["architectures"])


def tensors_of(folder: Path, file: str = "tensors.json") -> Tensors:
    """Name -> type and shape, as the checkpoint's files have them."""
    if twin := FLOAT8_TWINS.get(folder.name):
        config = AutoConfig.from_pretrained(folder).quantization_config
        return _in_float8(tensors_of(FOLDERS[twin]), Float8Config.from_huggingface(config))
    tensors = json.loads((folder / file).read_text())
    num_layers = AutoConfig.from_pretrained(folder).get_text_config().num_hidden_layers
    for name in [name for name in tensors if re.match(r"model\.layers\.0\.", name)]:  # long lists leave layers out
        for layer in range(1, num_layers):
            tensors.setdefault(name.replace("layers.0.", f"layers.{layer}.", 1), tensors[name])
    return tensors


def _in_float8(tensors: Tensors, config: Float8Config) -> Tensors:
    scaled: Tensors = {}
    for name, (dtype, shape) in tensors.items():
        is_projection = name.endswith("_proj.weight")
        scaled[name] = ("F8_E4M3" if is_projection else dtype, shape)
        if is_projection:
            scaled[f"{name}_scale_inv"] = ("BF16", list(config.scale_shape(tuple(shape))))
    return scaled


def state_dict_of(folder: Path, file: str = "tensors.json") -> dict[str, WeightData]:
    """State dict of a published checkpoint, without data; a name that its adapter does not know is an error."""
    tensors = {
        name: WeightData(None, name, DTYPES[dtype], Shape(shape))  # type: ignore[arg-type]
        for name, (dtype, shape) in tensors_of(folder, file).items()
    }
    return architecture_of(folder).weight_adapters["safetensors"](tensors, AutoConfig.from_pretrained(folder))


def configured(folder: Path, devices: str, encoding: str, weights: dict[str, WeightData]):  # type: ignore[no-untyped-def]
    """The finalized configuration of a run."""
    huggingface_config = AutoConfig.from_pretrained(folder)
    run = PipelineConfig(model=str(folder), devices=devices, quantization_encoding=encoding)
    config = architecture_of(folder).config.initialize_from_config(run, huggingface_config)
    config.finalize(huggingface_config, weights, ReturnLogits.VARIABLE)
    return config


def encodings_of(folder: Path, kind: str) -> list[str]:
    """Encodings in which this checkpoint can run on this kind of device; of those in blocks one, with its fallbacks."""
    is_float8 = "quantization_config" in json.loads((folder / "config.json").read_text())
    encodings = architecture_of(folder).encodings[kind]
    dense = [name for name in encodings if not encoding(name).has_blocks]
    runs = [name for name in dense if is_float8 or not encoding(name).needs_quantized_checkpoint]
    return [*runs, *(name for name in ("q4_k",) if name in encodings)]
