"""Checksums that find damage in memory and files, at the memory's speed; they resist no attacker."""

comptime WORDS = 32
comptime Words = SIMD[DType.uint64, WORDS]
comptime WORD_BYTES = 8
comptime STEP_BYTES = WORDS * WORD_BYTES
comptime FACTOR = UInt64(0x9E3779B97F4A7C15)


def checksum_bytes(source: Pointer[UInt8, _], size: Int) -> UInt64:
    """A polynomial in an odd factor modulo 2 ** 64, so any change within one word changes it for certain."""
    var sums = Words(UInt64(size))
    var whole = size - size % STEP_BYTES
    for start in range(0, whole, STEP_BYTES):
        sums = sums * FACTOR + load_words(source.unsafe_offset(start))
    var total = UInt64(0)
    comptime for i in range(WORDS):
        total = total * FACTOR + sums[i]
    for i in range(whole, size):
        total = total * FACTOR + source.unsafe_offset(i).unsafe_load().cast[DType.uint64]()
    return total


@always_inline
def load_words(source: Pointer[UInt8, _]) -> Words:
    return source.unsafe_bitcast[UInt64]().unsafe_load[width=WORDS, alignment=1]()
