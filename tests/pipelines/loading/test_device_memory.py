"""Memory of GPUs that are not there: what weights and steps leave for a cache, and what is said where they don't."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from max.dtype import DType
from max.graph import DeviceRef, Shape
from max.graph.weights import WeightData
from max.nn import Signals
from published import FOLDERS, SUPPORTED, architecture_of, state_dict_of
from transformers import AutoConfig

import pipelines.loading.weights as loading
from pipelines import InputError, PipelineConfig
from pipelines.errors import DeviceMemoryError, loading_onto_devices, step_error
from pipelines.load import _cache_memory, _table_notes
from pipelines.loading.blocks import FORMATS, BlockData
from pipelines.loading.checkpoint import resolve_config
from pipelines.loading.device_memory import (
    DeviceMemory,
    are_tables_on_device,
    cache_bytes,
    placed_bytes,
    read_device_memory,
)
from pipelines.loading.graphs import TracedGraphs
from pipelines.loading.weight_spec import WeightSource, WeightSpec
from pipelines.loading.weights import materialize
from pipelines.opened_model import OpenedModel
from pipelines.pipeline_model import signal_buffer_types

GIB = 2**30
OUT = "CUDA call failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory)"


def gpu(number: int = 0, free: int = 72 * GIB, total: int = 80 * GIB) -> Any:
    stats = {"free_memory": free, "total_memory": total, "graph_mem_used": 0}
    return SimpleNamespace(id=number, is_host=False, stats=stats, synchronize=lambda: None)


def spec(name: str, shape: tuple[int, ...], dtype: DType = DType.bfloat16, **fields: Any) -> WeightSpec:
    return WeightSpec(name, dtype, (WeightSource(name, shape),), **fields)


def test_weights_count_on_the_devices_that_hold_them_once_for_each_name() -> None:
    split = WeightSource("w", (8, 6), axis=0, units=4)
    specs = [
        spec("first", (10,)),
        spec("first", (10,)),  # of a second graph: it shares the copy
        spec("table", (1000, 1000), is_on_host=True),
        spec("float8", (5, 7), DType.float8_e4m3fn, shard=1, num_shards=2),
        WeightSpec("w.shard0", DType.float32, (split,), 0, 2),
        WeightSpec("w.shard1", DType.float32, (split,), 1, 2),
    ]
    assert placed_bytes(specs, 2) == [10 * 2 + 4 * 6 * 4, 5 * 7 + 4 * 6 * 4]


def test_the_tightest_device_counts_as_often_as_there_are_devices() -> None:
    memory = read_device_memory([gpu(0), gpu(1, free=60 * GIB), gpu(2)], [30 * GIB, 20 * GIB, 20 * GIB], 2 * GIB)
    left = [(72 - 8 - 30 - 2) * GIB, (60 - 8 - 20 - 2) * GIB, (72 - 8 - 20 - 2) * GIB]
    assert [device.for_cache(0.9) for device in memory] == pytest.approx(left, abs=2)
    assert cache_bytes(memory, 0.9, None) == pytest.approx(3 * 30 * GIB, abs=6)
    assert cache_bytes(memory, 1.0, None) == 3 * (60 - 20 - 2) * GIB
    assert cache_bytes(memory, 0.9, 80 * GIB) == pytest.approx(3 * 30 * GIB, abs=6)
    with pytest.raises(InputError, match=r"gpu:1 has 30 GiB left for its part of the 91 GiB of kv_cache_memory"):
        cache_bytes(memory, 0.9, 91 * GIB)


def test_weights_that_do_not_fit_are_refused_with_all_that_counts() -> None:
    memory = DeviceMemory("gpu:3", 80 * GIB, 70 * GIB, 61 * GIB, 2 * GIB)
    with pytest.raises(InputError) as refused:
        memory.for_cache(0.9)
    message = str(refused.value)
    assert message.startswith("gpu:3 has 62 GiB to use (70 GiB of 80 GiB are free), but the weights take 61 GiB")
    for option in ("--devices", "--quantization-encoding", "--max-batch-tokens", "--device-memory-utilization"):
        assert option in message
    assert memory.for_cache(0.95) == pytest.approx(3 * GIB, abs=2)


def opened_on(folder: str, devices: list[Any], **settings: Any) -> OpenedModel:
    """A published model, whose weights are not there."""
    names = "gpu:" + ",".join(str(device.id) for device in devices)
    run = PipelineConfig(model=str(FOLDERS[folder]), devices=names, **settings)
    checkpoint = resolve_config(str(FOLDERS[folder]))
    architecture, state_dict = architecture_of(FOLDERS[folder]), state_dict_of(FOLDERS[folder])
    kv_params = architecture.config.initialize_from_config(run, checkpoint.huggingface_config).get_kv_params()
    return OpenedModel(run, checkpoint, architecture, devices, [], state_dict, kv_params)


def planned(folder: str, devices: list[Any], **settings: Any) -> int:
    """Bytes of the cache of a published model."""
    opened = opened_on(folder, devices, **settings)
    available, share = _cache_memory(opened, TracedGraphs(opened.trace()))
    assert share == 1
    return available


def test_a_model_of_16_bits_and_its_steps_are_taken_off() -> None:
    """Llama 3.1 8B has 8.03 billion weights; its steps take less than 2 GiB."""
    settings: dict[str, Any] = {"quantization_encoding": "bfloat16", "max_length": 8192}
    left = planned("meta-llama__Llama-3.1-8B-Instruct", [gpu()], **settings)
    assert 64 * GIB - 8.03e9 * 2 - 2 * GIB < left < 64 * GIB - 8.03e9 * 2 - 0.1 * GIB
    assert left > planned("meta-llama__Llama-3.1-8B-Instruct", [gpu()], max_batch_tokens=65536, **settings)


def test_float8_counts_at_one_byte() -> None:
    """Qwen 3 8B: 6.95 billion weights in projections, 1.24 billion in embedding and head."""
    settings: dict[str, Any] = {"max_length": 8192, "quantization_encoding": "bfloat16"}
    wide = planned("Qwen__Qwen3-8B", [gpu()], **settings)
    narrow = planned("Qwen__Qwen3-8B-FP8", [gpu()], **settings | {"quantization_encoding": "float8_e4m3fn"})
    assert narrow - wide == pytest.approx(6.95e9, rel=0.01)


def test_devices_share_the_weights() -> None:
    """Two leave what one leaves, and its weights and memory once more; norms and steps are on both."""
    settings: dict[str, Any] = {"quantization_encoding": "bfloat16", "max_length": 8192}
    (name,) = [name for name in SUPPORTED if name.endswith("Qwen3-8B")]
    one = planned(name, [gpu()], **settings)
    two = planned(name, [gpu(0), gpu(1)], **settings)
    usable = 64 * GIB  # 72 free, a tenth of 80 unused
    assert usable + one - 4 * GIB < two < usable + one
    assert planned(name, [gpu(0), gpu(1, free=20 * GIB)], **settings) < two


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_lookup_table_is_on_the_first_device_if_that_is_much_larger(devices: int) -> None:
    """The per-layer embeddings of Gemma 4 E2B take 4.4 GiB in bfloat16."""
    name, table = "google__gemma-4-E2B-it", "embed_tokens_per_layer.weight"
    settings: dict[str, Any] = {"quantization_encoding": "bfloat16", "max_length": 8192}
    left = {}
    for total, is_on_host in ((80 * GIB, False), (40 * GIB, True)):
        opened = opened_on(name, [gpu(number, 30 * GIB, total) for number in range(devices)], **settings)
        graphs = TracedGraphs(opened.trace())
        (spec,) = [spec for spec in graphs.weights("decoder") if spec.name == table]
        assert (spec.is_on_host, spec.shard) == (is_on_host, 0)
        (note,) = _table_notes(opened, graphs)
        assert note == f"{table}: in the memory of the {'host' if is_on_host else 'first GPU'}"
        usable = opened.devices[0].stats["free_memory"] - 0.1 * total
        left[is_on_host] = usable - _cache_memory(opened, graphs)[0] / devices
    assert left[False] - left[True] == pytest.approx(262144 * 35 * 256 * 2, rel=0.01)


def test_a_lookup_table_in_blocks_stays_on_the_host() -> None:
    """Its rows are dequantized by the host's kernels."""
    dense = WeightData.from_numpy(np.zeros((8, 4), np.float32), "table")
    blocks = BlockData(**vars(dense), block_format=FORMATS["q4_0"])
    assert are_tables_on_device([dense], gpu()) and not are_tables_on_device([dense, blocks], gpu())


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTED)
def test_a_step_of_every_published_model_is_estimated(name: str) -> None:
    """Between the residual stream alone and 4 GiB, for steps of 2,048 tokens; more with more of each."""
    model, text = architecture_of(SUPPORTED[name]).pipeline_model, AutoConfig.from_pretrained(SUPPORTED[name])
    run: dict[str, Any] = {"model": str(SUPPORTED[name]), "devices": "gpu", "max_length": 8192}

    def estimate(**settings: Any) -> int:
        return int(model.estimate_activation_memory(PipelineConfig(**run | settings), text))

    few = estimate()
    assert 2048 * text.get_text_config().hidden_size * 2 < few < 4 * GIB
    assert few < estimate(max_batch_tokens=4096) and few < estimate(max_batch_size=64)


def test_a_gpu_that_is_alone_has_nobody_to_synchronize_with() -> None:
    """Signal buffers take 280 MB on each of several GPUs."""
    one, two = (signal_buffer_types([DeviceRef.GPU(i) for i in range(count)]) for count in (1, 2))
    assert [math.prod(map(int, kind.shape)) for kind in one] == [1]
    assert [math.prod(map(int, kind.shape)) for kind in two] == [Signals.NUM_BYTES] * 2
    assert [kind.device for kind in two] == [DeviceRef.GPU(0), DeviceRef.GPU(1)]


def test_nothing_stays_in_host_memory_of_a_weight_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of the mapped file are dropped, once the copy has read them."""
    events: list[str] = []
    values = np.zeros((64, 64), np.float32)
    device = gpu()
    device.synchronize = lambda: events.append("synchronized")
    monkeypatch.setattr(loading, "drop_resident_pages", lambda array: events.append(f"dropped {array.shape}"))

    class Placing:
        def to(self, target: Any) -> str:
            events.append("copied")
            return "on the GPU"

    monkeypatch.setattr(loading, "Buffer", SimpleNamespace(from_numpy=lambda array: Placing()))
    state = {"w": WeightData(values, "w", DType.float32, Shape(values.shape))}
    weights = materialize([spec("w", (64, 64), DType.float32)], state, [device])
    assert weights == {"w": "on the GPU"}
    assert events[-3:] == ["copied", "synchronized", "dropped (64, 64)"]


def test_a_device_that_runs_out_while_loading_is_one_line() -> None:
    with pytest.raises(InputError) as refused, loading_onto_devices():
        raise ValueError(f"At open-source/max/kernels:1:1: {OUT}\nmore")
    message = str(refused.value)
    assert "\n" not in message and "CUDA_ERROR_OUT_OF_MEMORY" in message and "more" not in message
    assert "--kv-cache-memory" in message and "--device-memory-utilization" in message
    with pytest.raises(ValueError, match=r"^something else$"), loading_onto_devices():
        raise ValueError("something else")


@pytest.mark.parametrize("text", [OUT, "Memory manager cannot satisfy allocation (5 bytes)", "a\nb: HIP_OUT_OF_MEMORY"])
def test_a_device_that_runs_out_in_a_step_is_one_line(text: str) -> None:
    error = step_error(RuntimeError(text))
    assert isinstance(error, DeviceMemoryError) and "\n" not in str(error)
    assert "lower max_batch_tokens (--max-batch-tokens), max_batch_size (--max-batch-size)" in str(error)


def test_other_errors_of_a_step_stay() -> None:
    for other in (RuntimeError("out of memory of old"), ValueError("x"), InputError(OUT)):
        assert step_error(other) is other
