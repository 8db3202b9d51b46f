"""Attention of the patches of an image to one another, on CPU. P patches, N heads of H values.

Keys and values are packed once for an image, so that a tile of products reads them in order and needs no remainders.
"""

import extensibility
from extensibility import InputTensor, OutputTensor
from max.algorithm import parallelize
from max.gpu.host import DeviceContext
from std.math import align_down, align_up, ceildiv, exp
from std.sys.info import num_physical_cores
from std.utils.numerics import neg_inf

from .vectors import WIDTH, Vector, copy, zeros

comptime ROWS = 8 if WIDTH >= 16 else 4
"""Rows of a tile."""
comptime VECTORS = 3
"""Vectors in a row of a tile: with ROWS of them, as many sums as leave registers for what is multiplied."""
comptime PANEL = VECTORS * WIDTH
"""Keys that are multiplied side by side."""
comptime BLOCK = 4 * ROWS
"""Queries whose scores are kept at a time."""
comptime CHUNK = 64
"""Values that stay in L1 while the scores of a block pass."""


@extensibility.register("graph_pipelines.image_attention")
struct ImageAttention:
    @staticmethod
    def execute[
        target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=4, ...],
        q: InputTensor[dtype=DType.float32, rank=4, ...],
        k: InputTensor[dtype=DType.float32, rank=4, ...],
        v: InputTensor[dtype=DType.float32, rank=4, ...],
        scale: Float32,
        ctx: DeviceContext,
    ) raises:
        """Y = softmax(q @ k.T * scale) @ v for every head of every image, all of them [images, P, N, H]."""
        var P = q.dim_size(1)
        var N = q.dim_size(2)
        var H = q.dim_size(3)
        for image in range(q.dim_size(0)):
            var start = image * P * N * H
            attend_image(
                y.unsafe_ptr().unsafe_offset(start),
                q.unsafe_ptr().unsafe_offset(start),
                k.unsafe_ptr().unsafe_offset(start),
                v.unsafe_ptr().unsafe_offset(start),
                P,
                N,
                H,
                scale,
            )


def attend_image(
    y: Pointer[mut=True, Float32, _],
    q: Pointer[Float32, _],
    k: Pointer[Float32, _],
    v: Pointer[Float32, _],
    P: Int,
    N: Int,
    H: Int,
    scale: Float32,
):
    """Each core packs some heads, then takes a run of the blocks of queries, head after head."""
    var padded_P = align_up(P, PANEL)
    var padded_H = align_up(H, WIDTH)
    var packed_k = zeros(N * padded_P * H)
    var packed_v = zeros(N * P * padded_H)
    var keys = packed_k.unsafe_ptr().unsafe_bitcast[Float32]()
    var values = packed_v.unsafe_ptr().unsafe_bitcast[Float32]()

    def pack(n: Int) {imm}:
        pack_keys(keys.unsafe_offset(n * padded_P * H), k.unsafe_offset(n * H), P, H, N * H)
        for p in range(P):
            copy(values.unsafe_offset((n * P + p) * padded_H), v.unsafe_offset((p * N + n) * H), H)

    parallelize(pack, N)
    var blocks = ceildiv(P, BLOCK)
    var num_tasks = num_physical_cores()
    var share = ceildiv(N * blocks, num_tasks)

    def task(t: Int) {imm}:
        var queries = List[Float32](length=BLOCK * H, fill=0)
        var scores = zeros(BLOCK * padded_P)
        var sums = zeros(BLOCK * padded_H)
        for i in range(t * share, min((t + 1) * share, N * blocks)):
            var n = i // blocks
            var first = i % blocks * BLOCK
            attend_block(
                y.unsafe_offset((first * N + n) * H),
                q.unsafe_offset((first * N + n) * H),
                keys.unsafe_offset(n * padded_P * H),
                values.unsafe_offset(n * P * padded_H),
                queries.unsafe_ptr(),
                scores.unsafe_ptr().unsafe_bitcast[Float32](),
                sums.unsafe_ptr().unsafe_bitcast[Float32](),
                min(BLOCK, P - first),
                P,
                H,
                N * H,
                scale,
            )

    parallelize(task, num_tasks)


def pack_keys(packed: Pointer[mut=True, Float32, _], k: Pointer[Float32, _], P: Int, H: Int, stride: Int):
    """From P keys, `stride` apart, to panels [H, PANEL]."""
    for p in range(P):
        var column = packed.unsafe_offset(align_down(p, PANEL) * H + p % PANEL)
        for h in range(H):
            column.unsafe_offset(h * PANEL).unsafe_store(k.unsafe_offset(p * stride + h).unsafe_load())


def attend_block(
    y: Pointer[mut=True, Float32, _],
    q: Pointer[Float32, _],
    keys: Pointer[Float32, _],
    values: Pointer[Float32, _],
    queries: Pointer[mut=True, Float32, _],
    scores: Pointer[mut=True, Float32, _],
    sums: Pointer[mut=True, Float32, _],
    count: Int,
    P: Int,
    H: Int,
    stride: Int,
    scale: Float32,
):
    """Up to BLOCK queries of one head, `stride` apart; what the rest give is not used."""
    var padded_P = align_up(P, PANEL)
    var padded_H = align_up(H, WIDTH)
    for m in range(count):
        copy(queries.unsafe_offset(m * H), q.unsafe_offset(m * stride), H)
    for p in range(0, padded_P, PANEL):
        for m in range(0, BLOCK, ROWS):
            var x = queries.unsafe_offset(m * H)
            multiply_tile[VECTORS](
                scores.unsafe_offset(m * padded_P + p), x, keys.unsafe_offset(p * H), H, padded_P, H, PANEL, False
            )
    for m in range(count):
        softmax(scores.unsafe_offset(m * padded_P), P, padded_P, scale)
    for p in range(0, P, CHUNK):
        for m in range(0, BLOCK, ROWS):
            multiply_columns(
                sums.unsafe_offset(m * padded_H),
                scores.unsafe_offset(m * padded_P + p),
                values.unsafe_offset(p * padded_H),
                min(CHUNK, P - p),
                padded_P,
                padded_H,
                p > 0,
            )
    for m in range(count):
        copy(y.unsafe_offset(m * stride), sums.unsafe_offset(m * padded_H), H)


def softmax(scores: Pointer[mut=True, Float32, _], P: Int, padded_P: Int, scale: Float32):
    """In place, of P scores times the scale."""
    for p in range(P, padded_P):
        scores.unsafe_offset(p).unsafe_store(neg_inf[DType.float32]())
    var maxima = Vector(neg_inf[DType.float32]())
    for p in range(0, padded_P, WIDTH):
        maxima = max(maxima, scores.unsafe_offset(p).unsafe_load[width=WIDTH]())
    var shift = Vector(-maxima.reduce_max() * scale)
    var totals = Vector(0)
    for p in range(0, padded_P, WIDTH):
        var values = exp(scores.unsafe_offset(p).unsafe_load[width=WIDTH]().fma(Vector(scale), shift))
        totals += values
        scores.unsafe_offset(p).unsafe_store(values)
    var factor = Vector(1 / totals.reduce_add())
    for p in range(0, padded_P, WIDTH):
        var values = scores.unsafe_offset(p).unsafe_load[width=WIDTH]()
        scores.unsafe_offset(p).unsafe_store(values * factor)


@always_inline
def multiply_columns(
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Float32, _],
    K: Int,
    x_stride: Int,
    width: Int,
    adds: Bool,
):
    """Y [ROWS, width] = x [ROWS, K] @ w [K, width], or that much more, for whole vectors."""
    var whole = align_down(width, PANEL)
    for n in range(0, whole, PANEL):
        multiply_tile[VECTORS](y.unsafe_offset(n), x, w.unsafe_offset(n), K, width, x_stride, width, adds)
    comptime for rest in range(1, VECTORS):
        if width - whole == rest * WIDTH:
            multiply_tile[rest](y.unsafe_offset(whole), x, w.unsafe_offset(whole), K, width, x_stride, width, adds)


@always_inline
def multiply_tile[
    S: Int
](
    y: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    w: Pointer[Float32, _],
    K: Int,
    y_stride: Int,
    x_stride: Int,
    w_stride: Int,
    adds: Bool,
):
    """Y [ROWS, S vectors] = x [ROWS, K] @ w [K, S vectors], or that much more."""
    var sums = Array[Vector, ROWS * S](fill=Vector(0))
    if adds:
        comptime for i in range(ROWS * S):
            sums[i] = y.unsafe_offset(i // S * y_stride + i % S * WIDTH).unsafe_load[width=WIDTH]()
    for k in range(K):
        comptime for s in range(S):
            var weights = w.unsafe_offset(k * w_stride + s * WIDTH).unsafe_load[width=WIDTH]()
            comptime for m in range(ROWS):
                sums[m * S + s] = weights.fma(Vector(x.unsafe_offset(m * x_stride + k).unsafe_load()), sums[m * S + s])
    comptime for i in range(ROWS * S):
        y.unsafe_offset(i // S * y_stride + i % S * WIDTH).unsafe_store(sums[i])
