"""Speed of the CPU's matrix products beside MAX's and torch's, in one process and by turns.

    python benchmarks/kernels.py [--rows 1,16,256] [--seconds 2]

The shapes are Gemma 3 1B's; eight weights of a shape are multiplied one after the other, as layers are, so that they
come from memory and a call's own time counts less. Prints the best GFLOP/s of each and, as other processes disturb all
of them alike, the median of the ratios of a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import click
import torch
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef, Graph, TensorType, TensorValue, ops

from architectures.layers import kernels
from pipelines.loading.encodings import float32

SHAPES = {"qkv": (1536, 1152), "out": (1152, 1024), "gate_up": (13824, 1152), "down": (1152, 6912)}
"""(outputs, inputs) of a layer's matrices."""
NUM_WEIGHTS = 8
PAIRS = [("f32", "MAX"), ("f32", "torch f32"), ("bf16", "f32"), ("bf16", "MAX"), ("bf16", "torch bf16")]

Product = Callable[[TensorValue, TensorValue], TensorValue]


def ours(x: TensorValue, w: TensorValue) -> TensorValue:
    record = float32.RECORD
    return record.matmul(x, record.matrix(w))


def maxs(x: TensorValue, w: TensorValue) -> TensorValue:
    return ops.matmul(x, ops.transpose(w, 0, 1))


def load(product: Product, dtype: DType, shape: tuple[int | str, int | str]) -> Model:
    device = DeviceRef.CPU()
    types = [TensorType(DType.float32, ["rows", shape[1]], device)]
    types += [TensorType(dtype, shape, device)] * NUM_WEIGHTS
    with Graph("products", input_types=types, custom_extensions=kernels.extensions([device])) as graph:
        x, *weights = (value.tensor for value in graph.inputs)
        graph.output(*(product(x, w) for w in weights))
    return InferenceSession(devices=[CPU()]).load(graph)


def measure(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, by turns; each second one counts, as threads of the one before still spin in the first."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def multiply_all(x: torch.Tensor, weights: list[torch.Tensor]) -> None:
    for w in weights:
        torch.mm(x, w.T)


def compare(shape: tuple[int, int], num_rows: int, own: dict[DType, Model], library: Model, seconds: float) -> str:
    """Returns a line of speeds and ratios."""
    out, size_in = shape
    x = torch.randn(num_rows, size_in)
    narrow = [torch.randn(out, size_in).bfloat16() for _ in range(NUM_WEIGHTS)]
    wide = [w.float() for w in narrow]
    inputs = {
        dtype: [Buffer.from_dlpack(value) for value in (x, *weights)]
        for dtype, weights in ((DType.float32, wide), (DType.bfloat16, narrow))
    }
    times = measure(
        {
            "f32": partial(own[DType.float32].execute, *inputs[DType.float32]),
            "bf16": partial(own[DType.bfloat16].execute, *inputs[DType.bfloat16]),
            "MAX": partial(library.execute, *inputs[DType.float32]),
            "torch f32": partial(multiply_all, x, wide),
            "torch bf16": partial(multiply_all, x.bfloat16(), narrow),
        },
        seconds,
    )
    work = 2e-9 * NUM_WEIGHTS * num_rows * out * size_in
    speeds = " ".join(f"{work / min(values):5.0f}" for values in times.values())
    ratios = [
        f"{mine}/{other} {statistics.median(b / a for a, b in zip(times[mine], times[other], strict=True)):.2f}"
        for mine, other in PAIRS
    ]
    return f"{num_rows:4}: {speeds} | {'  '.join(ratios)}"


@click.command()
@click.option("--rows", default="1,2,4,5,8,12,16,17,33,64,100,128,257,512", show_default=True)
@click.option("--seconds", default=2.0, show_default=True, help="For each shape and number of rows.")
def main(rows: str, seconds: float) -> None:
    """Print the speed of products, and their speed as a multiple of that of the others."""
    own = {dtype: load(ours, dtype, ("out", "in")) for dtype in (DType.float32, DType.bfloat16)}
    click.echo("shape rows: GFLOP/s of ours in float32 and bfloat16, of MAX, of torch in both | ratios of speeds")
    for name, shape in SHAPES.items():
        library = load(maxs, DType.float32, shape)
        for num_rows in map(int, rows.split(",")):
            with torch.inference_mode():
                click.echo(f"{name:8}{compare(shape, num_rows, own, library, seconds)}")


if __name__ == "__main__":
    main()
