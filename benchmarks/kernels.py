"""Speed of the CPU's matrix products beside MAX's and torch's, in one process and by turns.

    python benchmarks/kernels.py [--rows 1,16,256] [--seconds 2] [--formats q4_0,q4_k]

The shapes are Gemma 3 1B's; eight weights of a shape are multiplied one after the other, as layers are, so that they
come from memory and a call's own time counts less. Prints the best GFLOP/s of each and, as other processes disturb all
of them alike, the median of the ratios of a round. With `--formats` products with quantized weights are measured
beside those in float32: with activations quantized to int8, and with float32 activations.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import click
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef, Graph, TensorType, TensorValue, ops

from architectures.layers import kernels
from pipelines.loading.encodings import bfloat16, float32

SHAPES = {"qkv": (1536, 1152), "out": (1152, 1024), "gate_up": (13824, 1152), "down": (1152, 6912)}
"""(outputs, inputs) of a layer's matrices."""
NUM_WEIGHTS = 8
PAIRS = [("f32", "MAX"), ("f32", "torch f32"), ("bf16", "f32"), ("bf16", "MAX"), ("rounded", "torch bf16")]

WAYS = {"int8": True, "float": False}
"""How activations are multiplied with quantized weights: whether they are quantized."""

Product = Callable[[TensorValue, TensorValue], TensorValue]


def ours(x: TensorValue, w: TensorValue) -> TensorValue:
    record = float32.RECORD
    return record.matmul(x, record.matrix(w))


def rounded(x: TensorValue, w: TensorValue) -> TensorValue:
    record = bfloat16.BFloat16(DType.bfloat16)
    return record.matmul(x, record.matrix(w))


def maxs(x: TensorValue, w: TensorValue) -> TensorValue:
    return ops.matmul(x, ops.transpose(w, 0, 1))


def load(product: Product, dtype: DType, shape: tuple[int | str, int | str], size_in: int | str | None = None) -> Model:
    device = DeviceRef.CPU()
    types = [TensorType(DType.float32, ["rows", size_in or shape[1]], device)]
    types += [TensorType(dtype, shape, device)] * NUM_WEIGHTS
    with Graph("products", input_types=types, custom_extensions=kernels.extensions([device])) as graph:
        x, *weights = (value.tensor for value in graph.inputs)
        graph.output(*(product(x, w) for w in weights))
    return InferenceSession(devices=[CPU()]).load(graph)


def load_blocks(name: str, is_int8: bool) -> Model:
    """Products with quantized weights of any shape."""

    def product(x: TensorValue, w: TensorValue) -> TensorValue:
        y = TensorType(DType.float32, [x.shape[0], w.shape[0]], x.device)
        parameters: dict[str, bool | int | str | DType] = {"format": name, "int8_activations": is_int8}
        return ops.custom("graph_pipelines.block_matmul", x.device, [x, w], [y], parameters=parameters)[0].tensor

    return load(product, DType.uint8, ("out", "row_bytes"), "in")


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


def compare(shape: tuple[int, int], num_rows: int, own: dict[str, Model], library: Model, seconds: float) -> str:
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
            "f32": partial(own["f32"].execute, *inputs[DType.float32]),
            "bf16": partial(own["bf16"].execute, *inputs[DType.bfloat16]),
            "rounded": partial(own["rounded"].execute, *inputs[DType.bfloat16]),
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


def random_blocks(name: str, out: int, size_in: int) -> torch.Tensor:
    """Random integers with scales of one."""
    size, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]]
    blocks = torch.randint(0, 256, (out, size_in // size, num_bytes), dtype=torch.uint8)
    for place in (0, 2, 208):
        if place + 2 <= num_bytes:
            blocks[..., place : place + 2] = torch.tensor([0, 0x3C], dtype=torch.uint8)
    return blocks.reshape(out, -1)


def compare_blocks(name: str, shape: tuple[int, int], num_rows: int, models: dict[str, Model], seconds: float) -> str:
    """Returns a line of speeds of this format, and of their ratios to that of float32."""
    out, size_in = shape[0], shape[1] // 256 * 256
    x = torch.randn(num_rows, size_in)
    blocks = [random_blocks(name, out, size_in) for _ in range(NUM_WEIGHTS)]
    wide = [torch.randn(out, size_in) for _ in range(NUM_WEIGHTS)]
    calls = {way: partial(models[way].execute, *map(Buffer.from_dlpack, (x, *blocks))) for way in WAYS}
    times = measure({"f32": partial(models["f32"].execute, *map(Buffer.from_dlpack, (x, *wide))), **calls}, seconds)
    work, traffic = 2e-9 * NUM_WEIGHTS * num_rows * out * size_in, 1e-9 * NUM_WEIGHTS * blocks[0].numel()
    speeds = " ".join(
        f"{way} {work / min(times[way]):5.0f} GOP/s {traffic / min(times[way]):5.1f} GB/s" for way in WAYS
    )
    ratios = [
        f"{way}/f32 {statistics.median(b / a for a, b in zip(times[way], times['f32'], strict=True)):.2f}"
        for way in WAYS
    ]
    return f"{num_rows:4}: {speeds} | {'  '.join(ratios)}"


@click.command()
@click.option("--rows", default="1,2,4,5,8,12,16,17,33,64,100,128,257,512", show_default=True)
@click.option("--seconds", default=2.0, show_default=True, help="For each shape and number of rows.")
@click.option("--formats", help="Of quantized weights, separated by commas: these in place of floating point.")
def main(rows: str, seconds: float, formats: str | None) -> None:
    """Print the speed of products, and their speed as a multiple of that of the others."""
    if formats:
        print_formats(formats.split(","), list(map(int, rows.split(","))), seconds)
        return
    products = {"f32": (ours, DType.float32), "bf16": (ours, DType.bfloat16), "rounded": (rounded, DType.bfloat16)}
    own = {name: load(product, dtype, ("out", "in")) for name, (product, dtype) in products.items()}
    click.echo("shape rows: GFLOP/s of ours in float32, bfloat16, and with activations rounded to bfloat16, of MAX,")
    click.echo("of torch in float32 and bfloat16 | ratios of speeds")
    for name, shape in SHAPES.items():
        library = load(maxs, DType.float32, shape)
        for num_rows in map(int, rows.split(",")):
            with torch.inference_mode():
                click.echo(f"{name:8}{compare(shape, num_rows, own, library, seconds)}")


def print_formats(names: list[str], rows: list[int], seconds: float) -> None:
    wide = load(ours, DType.float32, ("out", "in"))
    for name in names:
        models = {"f32": wide, **{way: load_blocks(name, is_int8) for way, is_int8 in WAYS.items()}}
        for shape_name, shape in SHAPES.items():
            for num_rows in rows:
                with torch.inference_mode():
                    click.echo(f"{name:5}{shape_name:8}{compare_blocks(name, shape, num_rows, models, seconds)}")


if __name__ == "__main__":
    main()
