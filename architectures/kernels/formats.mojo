"""The formats of quantized weights by name."""

from .block_formats import BlockFormat
from .k_formats import Q4_K, Q5_K, Q6_K
from .small_formats import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0

comptime FormatNamed[name: StaticString]: BlockFormat = (
    Q8_0 if name == "q8_0" else
    Q5_1 if name == "q5_1" else
    Q5_0 if name == "q5_0" else
    Q4_1 if name == "q4_1" else
    Q4_K if name == "q4_k" else
    Q5_K if name == "q5_k" else
    Q6_K if name == "q6_k" else
    Q4_0
)


@always_inline
def check_name[name: StaticString]():
    """Refuses the names for which `FormatNamed` is Q4_0 because it has no other."""
    comptime assert name == "q4_0" or FormatNamed[name].BLOCK_BYTES != Q4_0.BLOCK_BYTES, "no such format of weights"
