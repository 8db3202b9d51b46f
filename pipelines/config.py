"""The configuration of a run: model, devices, limits. Nothing here is read from the checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.errors import InputError
from pipelines.loading.encodings import ACTIVATION_ENCODINGS, ENCODINGS, encoding

if TYPE_CHECKING:
    from max.driver import Device
    from max.graph import DeviceRef

AUTO = "auto"
"""Value of settings that the checkpoint decides: the encoding, the sampling defaults."""
GENERATION_CONFIGS = (AUTO, "none")
KV_CACHE_DTYPES = (AUTO, "float32", "bfloat16", "int8")
MAX_STEP_TOKENS = {"cpu": 512, "gpu": 2048}
UNITS = {"B": 1}
for power, prefix in enumerate("KMGT", 1):
    UNITS |= {f"{prefix}B": 1000**power, f"{prefix}IB": 1024**power}


@dataclass(frozen=True)
class PipelineConfig:
    """The configuration of one run of one model.

    Raises:
        InputError: No run can have this value. Values that the model can't have are found when it is loaded.
    """

    model: str | None = None  # a folder or a hub id; None: the demo model that comes with the package
    weight_path: str | None = None  # a GGUF file, on this machine or in the model's folder or repository
    revision: str | None = None
    devices: str = "cpu"  # "cpu", "gpu" (the first), "gpu:0,1"; "cpu:0,cpu:0": two shards on the CPU, for tests
    quantization_encoding: str = AUTO
    head_encoding: str = AUTO  # of the embedding and the head
    activation_encoding: str = AUTO  # of activations in products; auto: int8 with weights in blocks, else as they are
    max_length: int | None = None  # tokens of prompt and output; None: the model's limit, or what fits in memory
    max_batch_size: int = 8  # requests that run at once
    max_batch_tokens: int | None = None  # tokens of one step, prefill chunks and decodes together
    kv_cache_memory: int | None = None  # bytes; None: as the requests need, within a share of the free memory
    device_memory_utilization: float = 0.9  # of each GPU's memory; the rest stays free
    kv_cache_dtype: str = AUTO  # AUTO: that of the activations, which GPUs want; bfloat16 if products round to int8
    enable_prefix_caching: bool = False
    enable_weight_cache: bool = True  # keeps weights that are quantized while loading for the next start
    artifacts: str | None = None  # a folder of graphs compiled ahead of time; None: they are compiled now
    chat_template: str | None = field(default=None, repr=False)  # Jinja text in place of the checkpoint's template
    generation_config: str = AUTO  # the source of sampling defaults: the checkpoint's generation_config.json, or "none"
    custom_architectures: tuple[str, ...] = ()  # "module" or "module:attribute"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.model is not None:
            object.__setattr__(self, "model", os.fspath(self.model))  # it may be a Path
        if self.weight_path is not None:
            object.__setattr__(self, "weight_path", os.fspath(self.weight_path))
            if not self.weight_path.endswith(".gguf"):
                raise InputError(f"weight_path (--weight-path) is '{self.weight_path}': give a .gguf file")
        if self.artifacts is not None:
            object.__setattr__(self, "artifacts", os.fspath(self.artifacts))
        _parse_devices(self.devices)
        _check_choice("quantization_encoding", self.quantization_encoding, (AUTO, *ENCODINGS))
        _check_choice("head_encoding", self.head_encoding, (AUTO, *ENCODINGS))
        _check_choice("activation_encoding", self.activation_encoding, (AUTO, *ACTIVATION_ENCODINGS))
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        _check_choice("generation_config", self.generation_config, GENERATION_CONFIGS)
        if self.chat_template is not None:
            from pipelines.text.chat_template import check_chat_template

            check_chat_template(self.chat_template)
        _check_int("max_length (--max-length)", self.max_length, 1, 2**24)
        _check_int("max_batch_size (--max-batch-size)", self.max_batch_size, 1, 4096, optional=False)
        _check_int("max_batch_tokens", self.max_batch_tokens, 1, 2**20)
        _check_int("kv_cache_memory (--kv-cache-memory)", self.kv_cache_memory, 1, 2**50)
        _check_share("device_memory_utilization (--device-memory-utilization)", self.device_memory_utilization)
        if isinstance(self.custom_architectures, str):
            raise InputError(f"custom_architectures is '{self.custom_architectures}': give a tuple of names")
        object.__setattr__(self, "custom_architectures", tuple(self.custom_architectures))

    @property
    def leaves_encoding_open(self) -> bool:
        """Whether the checkpoint and the device decide the encoding."""
        return self.quantization_encoding == AUTO

    @property
    def rounds_activations(self) -> bool:
        """Whether products round activations to fewer bits, in a run whose encoding is chosen."""
        return self.chosen_activation_encoding != ACTIVATION_ENCODINGS[0]

    @property
    def chosen_activation_encoding(self) -> str:
        """The type to which products round activations, in a run whose encoding is chosen."""
        if self.activation_encoding != AUTO:
            return self.activation_encoding
        return encoding(self.quantization_encoding).product_dtypes[0].name

    @property
    def device_kind(self) -> Literal["cpu", "gpu"]:
        """The device kind of the run: all its devices are of one kind."""
        return _parse_devices(self.devices)[0]

    @property
    def device_refs(self) -> list[DeviceRef]:
        """The devices as a graph names them; none is opened, or needs to exist."""
        from max.graph import DeviceRef

        kind, numbers = _parse_devices(self.devices)
        return [DeviceRef.CPU() if kind == "cpu" else DeviceRef.GPU(number) for number in numbers]

    @property
    def max_step_tokens(self) -> int:
        """The token budget of one step; unless it is set, large enough for one token of each running request."""
        return self.max_batch_tokens or max(MAX_STEP_TOKENS[self.device_kind], self.max_batch_size)


def open_devices(config: PipelineConfig) -> list[Device]:
    """Opens the devices of a run.

    Raises:
        InputError: The machine lacks one of the GPUs.
    """
    from max.driver import CPU, Accelerator, accelerator_count

    kind, numbers = _parse_devices(config.devices)
    if kind == "cpu":
        return [CPU() for _ in numbers]
    num_found = accelerator_count()
    if not num_found:
        raise InputError(f"no GPU found for devices (--devices) '{config.devices}': use 'cpu'")
    if max(numbers) >= num_found:
        found = ", ".join(f"gpu:{number}" for number in range(num_found))
        raise InputError(f"no GPU {max(numbers)} found for devices (--devices) '{config.devices}': there is {found}")
    return [Accelerator(number) for number in numbers]


def parse_memory(text: str) -> int:
    """Parses an amount of memory to bytes: "2GiB", "0.5 GiB" or "512MB"; a number alone is bytes.

    Raises:
        InputError: The text is anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip(), re.IGNORECASE | re.ASCII)
    factor = UNITS.get((match[2] or "B").upper()) if match else None
    size_bytes = int(float(match[1]) * factor) if match and factor and len(match[1]) < 20 else 0
    if not size_bytes:
        raise InputError(f"'{text}' is not an amount of memory: write for example 2GiB or 512MB")
    return size_bytes


def _parse_devices(devices: str) -> tuple[Literal["cpu", "gpu"], list[int]]:
    """Parses the device kind, and the number of each device in the order given; the CPU may be named repeatedly."""
    if devices == "cpu" or (isinstance(devices, str) and re.fullmatch(r"cpu:0(,cpu:0){0,31}", devices)):
        return "cpu", [0] * (devices.count(",") + 1)
    if devices == "gpu":
        return "gpu", [0]
    match = re.fullmatch(r"gpu:(\d{1,3}(?:,\d{1,3})*)", devices, re.ASCII) if isinstance(devices, str) else None
    if match is None:
        raise InputError(f"devices (--devices) is '{devices}': write cpu, gpu, or gpu:0,1 with the GPUs' numbers")
    numbers = [int(number) for number in match[1].split(",")]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"devices (--devices) is '{devices}': name each GPU once")
    return "gpu", numbers


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} is '{value}': choose one of {', '.join(choices)}")


def _check_share(name: str, value: Any) -> None:
    if type(value) not in (int, float) or not 0 < value <= 1:
        raise InputError(f"{name} is {value!r}: give a share above 0 and up to 1, such as 0.9")


def _check_int(name: str, value: Any, low: int, high: int, optional: bool = True) -> None:
    if value is None and optional:
        return
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{name} is {value!r}: give a whole number from {low} to {high}")
