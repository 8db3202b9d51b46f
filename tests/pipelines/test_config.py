"""The run's configuration: what it accepts, what it refuses, and the devices it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import max.driver
import pytest
from max.graph import DeviceRef

from pipelines.config import PipelineConfig, open_devices, parse_memory
from pipelines.errors import InputError


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("devices", "tpu"),
        ("devices", "gpu:"),
        ("devices", "gpu:0,0"),
        ("devices", "gpu:-1"),
        ("devices", "gpu:0,1x"),
        ("devices", "cpu:1"),
        ("devices", "cpu:0,gpu:0"),
        ("devices", "cpu,cpu"),
        ("quantization_encoding", "int8"),
        ("max_length", 0),
        ("max_length", -5),
        ("max_length", 10**12),
        ("max_length", 1.5),
        ("max_length", True),
        ("max_batch_size", 0),
        ("max_batch_size", None),
        ("max_batch_size", 10**6),
        ("max_batch_tokens", 0),
        ("kv_cache_memory", -1),
        ("device_memory_utilization", 0),
        ("device_memory_utilization", 1.5),
        ("device_memory_utilization", "half"),
        ("kv_cache_dtype", "int4"),
        ("custom_architectures", "my_package"),
    ],
)
def test_impossible_values_are_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        PipelineConfig(**{setting: value})
    message = str(caught.value)
    assert message.startswith(f"{setting} ")
    assert f" is {value}" in message.replace("'", "")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("devices", "device_kind", "refs"),
    [
        ("cpu", "cpu", [DeviceRef.CPU()]),
        ("cpu:0", "cpu", [DeviceRef.CPU()]),
        ("cpu:0,cpu:0", "cpu", [DeviceRef.CPU(), DeviceRef.CPU()]),
        ("gpu", "gpu", [DeviceRef.GPU(0)]),
        ("gpu:1", "gpu", [DeviceRef.GPU(1)]),
        ("gpu:2,0", "gpu", [DeviceRef.GPU(2), DeviceRef.GPU(0)]),
    ],
)
def test_device_refs_need_no_device(devices: str, device_kind: str, refs: list[DeviceRef]) -> None:
    config = PipelineConfig(devices=devices)
    assert config.device_kind == device_kind
    assert config.device_refs == refs


def test_a_step_has_room_for_every_request() -> None:
    assert PipelineConfig().max_step_tokens == 512
    assert PipelineConfig(devices="gpu").max_step_tokens == 2048
    assert PipelineConfig(max_batch_tokens=7).max_step_tokens == 7
    assert PipelineConfig(max_batch_size=1000).max_step_tokens == 1000


def test_a_path_is_a_model_and_a_list_is_a_tuple(tmp_path: Path) -> None:
    config = PipelineConfig(model=tmp_path, custom_architectures=["a", "b:c"])  # type: ignore[arg-type]
    assert config.model == str(tmp_path)
    assert config.custom_architectures == ("a", "b:c")


def test_opening_the_cpu() -> None:
    (device,) = open_devices(PipelineConfig())
    assert device.label == "cpu"
    assert [device.label for device in open_devices(PipelineConfig(devices="cpu:0,cpu:0,cpu:0"))] == ["cpu"] * 3


@pytest.mark.parametrize(
    ("num_found", "devices", "expected"),
    [(0, "gpu", "use 'cpu'"), (2, "gpu:1,2", "there is gpu:0, gpu:1"), (1, "gpu:7", "no GPU 7 found")],
)
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, num_found: int, devices: str, expected: str) -> None:
    monkeypatch.setattr(max.driver, "accelerator_count", lambda: num_found)
    with pytest.raises(InputError, match=expected):
        open_devices(PipelineConfig(devices=devices))


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2GiB", 2 * 1024**3),
        ("0.5 gib", 512 * 1024**2),
        ("512MB", 512_000_000),
        (" 3 KiB ", 3072),
        ("1TB", 10**12),
        ("4096", 4096),
        ("17B", 17),
    ],
)
def test_memory_sizes(text: str, size_bytes: int) -> None:
    assert parse_memory(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "0GiB", "1.5.2GB", "1XB", "nan", "1e9", "9" * 400 + "GB"])
def test_what_is_not_a_memory_size(text: str) -> None:
    with pytest.raises(InputError, match="2GiB"):
        parse_memory(text)
