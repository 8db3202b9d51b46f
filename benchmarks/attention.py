"""Speed of attention over the paged cache on CPU, beside MAX's `flash_attention_ragged`, by turns.

    python benchmarks/attention.py [--depths 512,8192,32768] [--prefill 512] [--rounds 7]

The heads are Gemma 3 1B's: 4 of queries, 1 of keys and values, 256 numbers each. A step computes several layers, so
that keys and values come from memory. Prints the median milliseconds of a layer, what it reads or computes in a
second, and the median of the ratios of a round, as other processes disturb all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import numpy as np
from max import tree
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef, Graph, TensorType, TensorValue, ops
from max.nn.attention import MHAMaskVariant
from max.nn.kernels import flash_attention_ragged
from max.nn.kv_cache import PagedCacheValues

from architectures.layers import kernels
from architectures.layers.paged_attention import paged_attention
from kv_cache import KVCacheManager, KVCacheParams, PageGroup

NUM_HEADS, HEAD_DIM, NUM_LAYERS = 4, 256, 4
SCALE = HEAD_DIM**-0.5
HOST = DeviceRef.CPU()

Attend = Callable[[PageGroup, TensorValue, TensorValue, PagedCacheValues, TensorValue], TensorValue]


def ours(
    group: PageGroup, q: TensorValue, offsets: TensorValue, pages: PagedCacheValues, i: TensorValue
) -> TensorValue:
    return paged_attention(group, q, offsets, pages, i, SCALE)


def maxs(
    group: PageGroup, q: TensorValue, offsets: TensorValue, pages: PagedCacheValues, i: TensorValue
) -> TensorValue:
    return flash_attention_ragged(group.max_params, q, offsets, pages, i, MHAMaskVariant.CAUSAL_MASK, SCALE)


def new_group(dtype: DType) -> PageGroup:
    return PageGroup("full", NUM_LAYERS, 1, HEAD_DIM, dtype, (HOST,))


def load(attend: Attend, group: PageGroup) -> Model:
    (pages,) = KVCacheParams((group,)).symbolic_inputs()["full"]
    q_type = TensorType(DType.float32, ["tokens", NUM_HEADS, HEAD_DIM], HOST)
    types = (q_type, TensorType(DType.uint32, ["input_row_offsets_len"], HOST), pages)
    extensions = kernels.extensions([HOST])
    with Graph("attention", input_types=tree.leaves(types), custom_extensions=extensions) as graph:
        q, offsets, cache = tree.unflatten(tree.flatten(types)[1], graph.inputs)
        layers = (ops.constant(i, DType.uint32, HOST) for i in range(NUM_LAYERS))
        for layer in layers:
            q = attend(group, q, offsets, cache, layer)
        graph.output(q)
    return InferenceSession(devices=[CPU()]).load(graph)


def new_inputs(group: PageGroup, depth: int, num_new: int) -> list[object]:
    """A row of `depth` tokens in the cache and `num_new` more; at last the cache, which owns its pages."""
    params = KVCacheParams((group,))
    cache = KVCacheManager(params, {"full": group.num_pages(depth + num_new)}, [CPU()])
    row = cache.open()
    assert cache.allocate(row, depth + num_new)
    cache.commit(row, depth)
    (pages,) = cache.runtime_inputs([row], [num_new])["full"]
    # Untouched pages would all be the same one; 0x3B3B is 0.003 in each type of float.
    pages.kv_blocks.view(DType.uint8, [pages.kv_blocks.num_elements * group.dtype.size_in_bytes]).to_numpy()[:] = 0x3B
    q = np.random.default_rng(1).standard_normal((num_new, NUM_HEADS, HEAD_DIM), np.float32)
    offsets = np.array([0, num_new], np.uint32)
    return [Buffer.from_numpy(q), Buffer.from_numpy(offsets), *tree.leaves(pages), cache]


def compare(models: dict[str, tuple[Model, PageGroup]], depth: int, num_new: int, rounds: int) -> str:
    """A line of milliseconds, GB/s (of one token) or GFLOP/s (of many), and ratios to the first."""
    inputs = {name: new_inputs(group, depth, num_new) for name, (_, group) in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, (model, _) in models.items():
            model.execute(*inputs[name][:-1])  # threads of the one before still spin in the first
            start = time.perf_counter()
            model.execute(*inputs[name][:-1])
            times[name].append((time.perf_counter() - start) / NUM_LAYERS)
    num_keys = num_new * depth + num_new * (num_new + 1) / 2
    parts = []
    for name, (_, group) in models.items():
        seconds = statistics.median(times[name])
        if num_new == 1:
            speed = f"{num_keys * group.row_size * group.dtype.size_in_bytes * 2 / seconds / 1e9:5.1f} GB/s"
        else:
            speed = f"{num_keys * NUM_HEADS * HEAD_DIM * 4 / seconds / 1e9:5.0f} GFLOP/s"
        ratio = statistics.median(a / b for a, b in zip(times["MAX"], times[name], strict=True))
        parts.append(f"{name} {seconds * 1e3:8.3f} ms {speed} {ratio:5.2f}x")
    return " | ".join(parts)


@click.command()
@click.option("--depths", default="512,8192,32768", show_default=True, help="Of decoding.")
@click.option("--prefill", default=512, show_default=True, help="Tokens of a chunk, at depth 0 and 8,192.")
@click.option("--rounds", default=7, show_default=True)
def main(depths: str, prefill: int, rounds: int) -> None:
    """Print the time of a layer's attention, its speed, and that as a multiple of MAX's."""
    groups = {dtype: new_group(dtype) for dtype in (DType.float32, DType.bfloat16, DType.int8)}
    models = {"MAX": (load(maxs, groups[DType.float32]), groups[DType.float32])}
    models |= {dtype.name: (load(ours, group), group) for dtype, group in groups.items()}
    for depth in map(int, depths.split(",")):
        click.echo(f"decode at {depth:6}: {compare(models, depth, 1, rounds)}")
    for depth in (0, 8192):
        click.echo(f"{prefill} at {depth:6}: {compare(models, depth, prefill, rounds)}")


if __name__ == "__main__":
    main()
