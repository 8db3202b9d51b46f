"""Products of a tile of widened keys, or of values, with a panel of lanes side by side."""

from .vectors import HAS_32_REGISTERS, WIDTH, Vector, load, store

comptime NR = 6
"""Keys in the micro-kernel, or values of a head."""
comptime NV = 4 if HAS_32_REGISTERS else 2
"""Vectors of lanes in it."""
comptime PANEL = NV * WIDTH
"""Most lanes of a panel."""
comptime MAX_HEAD_SIZE = 512
comptime STRIDE = MAX_HEAD_SIZE + 16
"""Distance of widened rows: not a power of two, which would put them into the same places of L1."""


@always_inline
def multiply_tile[
    row_stride: Int, step: Int
](
    sums: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    tile: Pointer[Float32, _],
    depth: Int,
    width: Int,
    factors: Pointer[Float32, _],
    adds: Bool,
):
    """For a panel of `width` lanes."""
    comptime for V in range(1, NV + 1):
        if width == V * WIDTH:
            micro_kernel[V, row_stride, step](sums, x, tile, depth, factors, adds)


@always_inline
def micro_kernel[
    V: Int, row_stride: Int, step: Int
](
    sums: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    tile: Pointer[Float32, _],
    depth: Int,
    factors: Pointer[Float32, _],
    adds: Bool,
):
    """Sums [NR, V vectors] = tile [NR, depth] @ x [depth, V vectors], or that much more than factors * sums."""
    var totals = Array[Vector, NR * V](fill=Vector(0))
    for k in range(depth):
        var inputs = Array[Vector, V](fill=Vector(0))
        comptime for v in range(V):
            inputs[v] = load(x, (k * V + v) * WIDTH)
        comptime for n in range(NR):
            var weight = Vector(tile.unsafe_offset(n * row_stride + k * step).unsafe_load())
            comptime for v in range(V):
                totals[n * V + v] = weight.fma(inputs[v], totals[n * V + v])
    comptime for i in range(NR * V):
        if adds:
            totals[i] = load(sums, i * WIDTH).fma(load(factors, i % V * WIDTH), totals[i])
        store(sums, i * WIDTH, totals[i])
