"""Gated activations on CPU, in one pass over the products of gate and up."""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.algorithm import parallelize
from max.gpu.host import DeviceContext
from std.math import align_down, ceildiv, exp
from std.sys.info import num_physical_cores

from .vectors import WIDTH

comptime SERIAL = 1 << 14
"""Up to so many values are computed sooner on one core than another core wakes up."""


@extensibility.register("graph_pipelines.gated_activation")
struct GatedActivation:
    @staticmethod
    def execute[
        activation: StaticString, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        """Y [T, F] = activation(gate) * up for x [T, F of gate and F of up]."""
        var yp = y.unsafe_ptr()
        var xp = x.unsafe_ptr()
        var T = y.dim_size(0)
        var F = y.dim_size(1)
        var num_tasks = num_physical_cores() if T * F > SERIAL else 1
        var share = ceildiv(T, num_tasks)

        def task(t: Int) {imm}:
            for row in range(t * share, min((t + 1) * share, T)):
                activate_row[activation](yp.unsafe_offset(row * F), xp.unsafe_offset(row * 2 * F), F)

        if num_tasks == 1:
            task(0)
        else:
            parallelize(task, num_tasks)


@always_inline
def activate_row[activation: StaticString](y: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], F: Int):
    var whole = align_down(F, WIDTH)
    for i in range(0, whole, WIDTH):
        activate[activation, WIDTH](y.unsafe_offset(i), x.unsafe_offset(i), F)
    for i in range(whole, F):
        activate[activation, 1](y.unsafe_offset(i), x.unsafe_offset(i), F)


@always_inline
def activate[
    activation: StaticString, width: Int
](y: Pointer[mut=True, Float32, _], x: Pointer[Float32, _], F: Int):
    """Computes `width` values; those of up lie F after those of gate."""
    comptime assert activation == "silu" or activation == "gelu_pytorch_tanh", "no such activation"
    var gate = x.unsafe_load[width=width]()
    var argument = gate
    comptime if activation == "gelu_pytorch_tanh":  # twice sqrt(2 / pi) (x + 0.044715 x^3)
        argument *= (gate * gate).fma(0.044715, 1.0) * 1.5957691216057308
    y.unsafe_store(gate / (1 + exp(-argument)) * x.unsafe_offset(F).unsafe_load[width=width]())
