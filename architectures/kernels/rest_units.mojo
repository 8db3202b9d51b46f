"""The ends of rows of weights that are no whole unit."""


struct RestUnits[UNIT_BYTES: Int, rows: Int](Movable):
    """Of some rows what is left after whole units, filled up with zeros; nothing if nothing is left."""

    var bytes: Array[UInt8, Self.rows * Self.UNIT_BYTES]

    @always_inline
    def __init__(out self, w: Pointer[UInt8, _], stride: Int, first: Int, end: Int):
        """The bytes from `first` to `end` of rows that are `stride` bytes apart."""
        self.bytes = Array[UInt8, Self.rows * Self.UNIT_BYTES](uninitialized=True)
        if first < end:
            for row in range(Self.rows):
                for i in range(Self.UNIT_BYTES):
                    var byte = w.unsafe_offset(row * stride + first + i).unsafe_load() if first + i < end else 0
                    self.bytes[row * Self.UNIT_BYTES + i] = byte

    @always_inline
    def start(ref self, row: Int) -> Pointer[UInt8, origin_of(self.bytes)]:
        return Pointer(to=self.bytes[row * Self.UNIT_BYTES])
