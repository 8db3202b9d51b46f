"""The first minute: products of the device as exact as assumed, weights where the graphs look, memory as planned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gpu_runs import IS_GPU, TEXT_RUNS, UNITS
from max.driver import CPU, Accelerator, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType, ops
from reference import random_tokens

from pipelines import SamplingParams

GIB = 2**30


@pytest.mark.parametrize("dtype", [DType.bfloat16, DType.float32] if IS_GPU else [DType.float32])
def test_products_are_as_exact_as_the_bounds_assume(dtype: DType) -> None:
    """[64, 256] x [256, 384]: so many rows and columns that a GPU uses tensor cores."""
    device, ref = (Accelerator(0), DeviceRef.GPU(0)) if IS_GPU else (CPU(), DeviceRef.CPU())
    types = [TensorType(DType.float32, shape, ref) for shape in ((64, 256), (384, 256))]
    with Graph("product", input_types=types) as graph:
        x, w = (ops.cast(value.tensor, dtype) for value in graph.inputs)
        graph.output(ops.cast(ops.matmul(x, ops.transpose(w, 0, 1)), DType.float32))
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, np.float32) for shape in ((64, 256), (384, 256)))
    (y,) = InferenceSession(devices=[device]).load(graph).execute(*(Buffer.from_numpy(a).to(device) for a in (x, w)))
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    error = float(np.linalg.norm(y.to_numpy() - exact) / np.linalg.norm(exact))
    unit = UNITS["gpu" if IS_GPU else "cpu", dtype.name]
    print(f"product in {dtype.name}: relative error {error:.1e}, bound {2 * unit:.1e}")
    assert error <= 2 * unit  # of both factors, and of the sum


def test_a_token_is_generated(load_run: Any) -> None:
    """The graph is compiled, the weights are on the device, the step runs."""
    run = TEXT_RUNS[0]
    pipe = load_run(run, max_batch_size=1)
    (output,) = pipe.generate([random_tokens(5, 1000)], SamplingParams(max_new_tokens=3, ignore_eos=True))
    assert output.finish_reason == "length", output.error
    on_host = {name for name, weight in pipe.model.weights.items() if not isinstance(weight, Buffer)}
    if IS_GPU:
        assert not on_host
        assert {weight.device.label for weight in pipe.model.weights.values()} == {"gpu"}


@pytest.mark.skipif(not IS_GPU, reason="the memory of a GPU")
def test_max_and_torch_share_the_memory(load_run: Any) -> None:
    """Neither takes the whole GPU for itself: what is free to one is free to the other, but for caches."""
    load_run(TEXT_RUNS[0], max_batch_size=1)
    free, total = torch.cuda.mem_get_info(0)
    stats = Accelerator(0).stats
    assert int(stats["total_memory"]) == pytest.approx(total, rel=0.01)
    assert int(stats["free_memory"]) == pytest.approx(free, abs=2 * GIB)
    block = torch.empty(free // 2, dtype=torch.uint8, device="cuda")
    assert int(Accelerator(0).stats["free_memory"]) <= free - block.numel() + 2 * GIB
    del block
    torch.cuda.empty_cache()
    (output,) = load_run(TEXT_RUNS[0], max_batch_size=1).generate([[5, 6]], SamplingParams(max_new_tokens=2))
    assert output.error is None


@pytest.mark.skipif(not IS_GPU, reason="the memory of a GPU")
def test_a_cache_beyond_the_device_is_one_line(load_run: Any) -> None:
    with pytest.raises(ValueError, match=r"gpu:0 has .* left for .*kv_cache_memory"):
        load_run(TEXT_RUNS[0], kv_cache_memory=2**42)
