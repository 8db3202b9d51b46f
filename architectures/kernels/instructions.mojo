"""The name of what the kernels were compiled for, which the target decides."""

import extensibility
from extensibility import OutputTensor
from max.gpu.host import DeviceContext

from .dot_bytes import INSTRUCTIONS


@extensibility.register("graph_pipelines.byte_instructions")
struct ByteInstructions:
    @staticmethod
    def execute[
        target: StaticString
    ](name: OutputTensor[dtype=DType.uint8, rank=1, ...], ctx: DeviceContext,) raises:
        """The letters of the instructions that products of bytes are computed with, then zeros."""
        for i in range(name.dim_size(0)):
            var letter = INSTRUCTIONS.as_bytes()[i] if i < INSTRUCTIONS.byte_length() else 0
            name.unsafe_ptr().unsafe_offset(i).unsafe_store(letter)
