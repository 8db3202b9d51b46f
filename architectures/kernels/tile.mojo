"""Products of packed rows with a tile of weights that stays in L1.

A tile is a piece of NR rows of the weight in words, TILE_STRIDE apart: another format of weights is another
`load_tile`. Depths, and places along K, count words.
"""

from std.math import align_up
from std.sys.intrinsics import PrefetchOptions, prefetch

from .pack import KC, NV, Panels, num_vectors, rest_stride
from .vectors import WIDTH, Vector, load, store
from .words import Floats, Words, copy_words

comptime NR = 6
"""Rows of the weight in a tile."""
comptime NC = 96
"""Rows of the weight that a core multiplies with a block: whole tiles and whole vectors."""
comptime TILE_STRIDE = KC + WIDTH
"""Distance of a tile's rows: not a power of two, which would put them into the same places of L1."""
comptime MR = 4 if NV == 4 else 1
"""Rows that are multiplied at a time with a tile's rows as they are."""


@always_inline
def load_tile[
    W: Words, dtype: DType
](tile: Pointer[mut=True, Float32, _], w: Pointer[Scalar[dtype], _], rows: Int, depth: Int, K: Int):
    """Copies a piece of up to NR rows; the tile's other rows keep what they have, and nobody uses their products."""
    if rows == NR:
        comptime for r in range(NR):
            copy_words[W](tile.unsafe_offset(r * TILE_STRIDE), w.unsafe_offset(r * K), depth)
    else:
        for r in range(rows):
            copy_words[W](tile.unsafe_offset(r * TILE_STRIDE), w.unsafe_offset(r * K), depth)


@always_inline
def multiply_tile[
    W: Words = Floats
](
    sums: Pointer[mut=True, Float32, _],
    packed: Pointer[Float32, _],
    tile: Pointer[Float32, _],
    next_tile: Pointer[UInt8, _],
    next_stride: Int,
    next_step: Int,
    M: Int,
    k: Int,
    depth: Int,
    K: Int,
):
    """Sums [NR, M] = tile @ the piece at k of M packed rows, added to what the pieces before it gave."""
    var vectors = num_vectors(M)
    var whole = vectors * WIDTH
    var piece = packed.unsafe_offset(k * whole)
    var padded_M = align_up(M, WIDTH)
    multiply_panels[W](sums, piece, tile, next_tile, next_stride, next_step, vectors, depth, padded_M, k > 0)
    multiply_rest[W](
        sums.unsafe_offset(whole),
        packed.unsafe_offset(whole * K + k),
        tile,
        max(0, M - whole),
        depth,
        rest_stride(K),
        padded_M,
        k > 0,
    )


@always_inline
def multiply_panels[
    W: Words
](
    sums: Pointer[mut=True, Float32, _],
    packed: Pointer[Float32, _],
    tile: Pointer[Float32, _],
    next_tile: Pointer[UInt8, _],
    next_stride: Int,
    next_step: Int,
    vectors: Int,
    depth: Int,
    sums_stride: Int,
    adds: Bool,
):
    """Sums [NR, vectors of rows] = tile @ packed rows, or that much more."""
    var panels = Panels(vectors)
    for panel in range(panels.count):
        var first = panels.start(panel)
        var width = panels.width_of(panel)
        var step = next_step if panel == 0 else 0
        var target = sums.unsafe_offset(first * WIDTH)
        var rows = packed.unsafe_offset(first * WIDTH * depth)
        comptime for V in range(1, NV + 1):
            if width == V:
                micro_kernel[W, V](target, rows, tile, next_tile, next_stride, step, depth, sums_stride, adds)


@no_inline
def micro_kernel[
    W: Words, V: Int
](
    sums: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    tile: Pointer[Float32, _],
    next_tile: Pointer[UInt8, _],
    next_stride: Int,
    next_step: Int,
    depth: Int,
    sums_stride: Int,
    adds: Bool,
):
    """Sums [NR, V vectors of rows] = tile [NR, depth] @ x [depth, V vectors of rows], or that much more.

    Meanwhile the next tile's weights are prefetched: `next_step` bytes of each row for a vector along K. Inlined into
    some of its callers, its sums would be spilled to the stack.
    """
    var totals = Array[Vector, NR * V](fill=Vector(0))
    for start in range(0, depth, WIDTH):
        comptime for n in range(NR):
            prefetch[PrefetchOptions().for_read().high_locality().to_data_cache()](
                next_tile.unsafe_offset(n * next_stride + start // WIDTH * next_step)
            )
        for k in range(start, min(start + WIDTH, depth)):
            var inputs = Array[Vector, V](fill=Vector(0))
            comptime for v in range(V):
                inputs[v] = load(x, (k * V + v) * WIDTH)
            comptime for n in range(NR):
                var weight = Vector(tile.unsafe_offset(n * TILE_STRIDE + k).unsafe_load())
                comptime for v in range(V):
                    totals[n * V + v] = W.multiply_add(totals[n * V + v], weight, inputs[v])
    comptime for n in range(NR):
        comptime for v in range(V):
            var i = n * sums_stride + v * WIDTH
            store(sums, i, totals[n * V + v] + load(sums, i) if adds else totals[n * V + v])


@always_inline
def multiply_rest[
    W: Words
](
    sums: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    tile: Pointer[Float32, _],
    rows: Int,
    depth: Int,
    x_stride: Int,
    sums_stride: Int,
    adds: Bool,
):
    """Sums [NR, rows] = tile [NR, depth] @ x [rows, depth].T, or that much more."""
    var whole = rows - rows % MR
    for m in range(0, whole, MR):
        multiply_rows[W, MR](
            sums.unsafe_offset(m), x.unsafe_offset(m * x_stride), tile, depth, x_stride, sums_stride, adds
        )
    comptime for rest in range(1, MR):
        if rows - whole == rest:
            multiply_rows[W, rest](
                sums.unsafe_offset(whole), x.unsafe_offset(whole * x_stride), tile, depth, x_stride, sums_stride, adds
            )


@always_inline
def multiply_rows[
    W: Words, M: Int
](
    sums: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    tile: Pointer[Float32, _],
    depth: Int,
    x_stride: Int,
    sums_stride: Int,
    adds: Bool,
):
    """Sums [NR, M] = tile [NR, depth] @ x [M, depth].T, or that much more; vectors along K."""
    var totals = Array[Vector, NR * M](fill=Vector(0))
    for k in range(0, depth, WIDTH):
        comptime for n in range(NR):
            var weights = load(tile, n * TILE_STRIDE + k)
            comptime for m in range(M):
                totals[n * M + m] = W.multiply_add(totals[n * M + m], weights, load(x, m * x_stride + k))
    comptime for n in range(NR):
        comptime for m in range(M):
            var target = sums.unsafe_offset(n * sums_stride + m)
            var total = totals[n * M + m].reduce_add()
            target.unsafe_store(total + target.unsafe_load() if adds else total)
