"""Products of packed rows of bytes with tiles of weights. A panel of rows stays in L1, the tiles in L2.

A tile is a piece of NR rows of the weight: their unsigned bytes, their scales, their minima, what takes back SHIFT.
"""

from std.math import ceildiv
from std.memory import bitcast
from std.sys.intrinsics import PrefetchOptions, prefetch

from .block_columns import GROUP
from .block_formats import CHUNK, BlockFormat, Unit, row_bytes, unit_bytes
from .byte_pack import KC, NV, SHIFT, num_starts, num_words
from .dequantize import rest_unit
from .dot_bytes import dot_bytes
from .pack import Panels, piece_size
from .tile import NR
from .vectors import WIDTH, Vector, load, store

comptime BYTES_STRIDE = KC // 4 + 16
"""Distance of a tile's rows in words: not a power of two, which would put them into the same places of L1."""
comptime SCALES = NR * BYTES_STRIDE
"""Where the scales of a tile begin, KC // CHUNK for each row."""
comptime MINIMA = SCALES + NR * KC // CHUNK
"""Where the minima begin, KC // GROUP for each row."""
comptime SHIFTS = MINIMA + NR * KC // GROUP
"""Where what takes back SHIFT begins, as the scales lie."""
comptime BYTE_TILE_SIZE = SHIFTS + NR * KC // CHUNK
comptime Words = SIMD[DType.int32, WIDTH]


@always_inline
def load_byte_tiles[
    F: BlockFormat
](tiles: Pointer[mut=True, Float32, _], w: Pointer[UInt8, _], rows: Int, depth: Int, stride: Int):
    """Unpacks a piece of so many rows that are `stride` bytes apart, whole units of it."""
    var whole = depth // F.UNIT
    for r in range(rows):
        var tile = tiles.unsafe_offset(r // NR * BYTE_TILE_SIZE)
        var row = w.unsafe_offset(r * stride)
        var rest = rest_unit[F](row, depth)
        for u in range(ceildiv(depth, F.UNIT)):
            var blocks = row.unsafe_offset(u * unit_bytes[F]()) if u < whole else rest.start(0)
            store_unit[F](tile, F.unpack(blocks), r % NR, u)


@always_inline
def store_unit[F: BlockFormat](tile: Pointer[mut=True, Float32, _], unit: Unit, r: Int, u: Int):
    """Stores the unit in the order of the row."""
    var bytes = tile.unsafe_offset(r * BYTES_STRIDE + u * (F.UNIT // 4)).unsafe_bitcast[UInt8]()
    comptime for place in range(F.UNIT // CHUNK):
        var chunk = unit.values[place // 4].slice[CHUNK, offset=place % 4 * CHUNK]()
        bytes.unsafe_offset(F.chunk(place) * CHUNK).unsafe_store(chunk)
    comptime groups = F.UNIT // F.GROUP
    var place = r * (KC // CHUNK) + u * groups
    tile.unsafe_offset(SCALES + place).unsafe_store(unit.scales.slice[groups]())
    tile.unsafe_offset(SHIFTS + place).unsafe_store(unit.scales.slice[groups]() * -SHIFT)
    comptime if F.HAS_MINIMA:
        comptime minima = F.UNIT // GROUP
        tile.unsafe_offset(MINIMA + r * (KC // GROUP) + u * minima).unsafe_store(unit.minima.slice[minima]())


@always_inline
def multiply_byte_tiles[
    F: BlockFormat
](
    sums: Pointer[mut=True, Float32, _],
    packed: Pointer[Float32, _],
    tiles: Pointer[Float32, _],
    next_weights: Pointer[UInt8, _],
    M: Int,
    count: Int,
    k: Int,
    K: Int,
):
    """Sums [count, M] = tiles @ the piece at k of M packed rows, added to what the pieces before it gave.

    A panel stays in L1 while all tiles are multiplied with it.
    """
    comptime size = num_words[F]() * WIDTH
    var vectors = ceildiv(M, WIDTH)
    var groups = min(piece_size[F.UNIT, KC](K), K - k) // GROUP
    var piece = packed.unsafe_offset(k // GROUP * vectors * size)
    var panels = Panels[NV](vectors)
    for panel in range(panels.count):
        var first = panels.start(panel)
        var width = panels.width_of(panel)
        var rows = piece.unsafe_offset(first * groups * size)
        # Only while the first panel is multiplied; then they are there.
        var stride = row_bytes[F](K) if panel == 0 else 0
        comptime for V in range(1, NV + 1):
            if width == V:
                for n in range(0, count, NR):
                    var target = sums.unsafe_offset((n * vectors + first) * WIDTH)
                    var tile = tiles.unsafe_offset(n // NR * BYTE_TILE_SIZE)
                    var next = next_weights.unsafe_offset(n * stride)
                    byte_micro_kernel[F, V](target, rows, tile, next, stride, groups, vectors * WIDTH, k > 0)


@always_inline
def byte_micro_kernel[
    F: BlockFormat, V: Int
](
    sums: Pointer[mut=True, Float32, _],
    x: Pointer[Float32, _],
    tile: Pointer[Float32, _],
    next_tile: Pointer[UInt8, _],
    next_stride: Int,
    groups: Int,
    sums_stride: Int,
    adds: Bool,
):
    """Sums [NR, V vectors of rows] = tile @ the groups of x, or that much more; meanwhile the next tile is prefetched.
    """
    comptime words = num_words[F]()
    var totals = Array[Vector, NR * V](fill=Vector(0))
    for group in range(groups):
        comptime for n in range(NR):
            prefetch[PrefetchOptions().for_read().high_locality().to_data_cache()](
                next_tile.unsafe_offset(n * next_stride + row_bytes[F](group * GROUP if next_stride > 0 else 0))
            )
        add_group[F, V](totals, x.unsafe_offset(group * words * V * WIDTH), tile, group)
    comptime for n in range(NR):
        comptime for v in range(V):
            var i = n * sums_stride + v * WIDTH
            store(sums, i, totals[n * V + v] + load(sums, i) if adds else totals[n * V + v])


@always_inline
def add_group[
    F: BlockFormat, V: Int
](mut totals: Array[Vector, NR * V], x: Pointer[Float32, _], tile: Pointer[Float32, _], group: Int):
    """Adds the products of a group of 32: exact sums for each group of the weights, scaled by both scales."""
    comptime assert F.LIMIT * 127 * F.GROUP < 1 << 22, "sums must stay below what SHIFT allows"
    comptime parts = GROUP // F.GROUP
    comptime starts = num_starts[F]()
    var scaled = Array[Vector, NR * V](fill=Vector(0))
    comptime for part in range(parts):
        var products = Array[Words, NR * V](fill=Words(0))
        comptime for i in range(NR * V):
            comptime if starts > 0:
                products[i] = bitcast[DType.int32, WIDTH](load(x, ((8 + part) * V + i % V) * WIDTH))
            else:
                products[i] = Words(bitcast[DType.int32](SHIFT))
        comptime for word in range(part * F.GROUP // 4, (part + 1) * F.GROUP // 4):
            comptime for n in range(NR):
                var weight = Vector(tile.unsafe_offset(n * BYTES_STRIDE + group * 8 + word).unsafe_load())
                comptime for v in range(V):
                    products[n * V + v] = dot_bytes[F.LIMIT, WIDTH](
                        products[n * V + v],
                        bitcast[DType.uint8, WIDTH * 4](weight),
                        bitcast[DType.int8, WIDTH * 4](load(x, (word * V + v) * WIDTH)),
                    )
        comptime for n in range(NR):
            var place = n * (KC // CHUNK) + group * parts + part
            var scale = Vector(tile.unsafe_offset(SCALES + place).unsafe_load())
            var shift = Vector(tile.unsafe_offset(SHIFTS + place).unsafe_load())
            comptime for v in range(V):
                var sums = bitcast[DType.float32, WIDTH](products[n * V + v]).fma(scale, shift)
                scaled[n * V + v] = sums if part == 0 else scaled[n * V + v] + sums
    comptime for n in range(NR):
        comptime for v in range(V):
            var x_scales = load(x, ((8 + starts) * V + v) * WIDTH)
            totals[n * V + v] = scaled[n * V + v].fma(x_scales, totals[n * V + v])
            comptime if F.HAS_MINIMA:
                var minimum = Vector(tile.unsafe_offset(MINIMA + n * (KC // GROUP) + group).unsafe_load())
                totals[n * V + v] = minimum.fma(-load(x, ((9 + starts) * V + v) * WIDTH), totals[n * V + v])
