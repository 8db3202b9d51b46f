"""The encoding bfloat16. Activations are float32 on CPU, so that a bfloat16 checkpoint loses no precision there.

Products on CPU can round them to bfloat16, which is faster where the CPU has instructions for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from max.dtype import DType

from pipelines.loading.encoding import DenseEncoding, Encoding


@dataclass(frozen=True)
class BFloat16(DenseEncoding):
    """Matrices in bfloat16, the upper half of float32."""

    name = "bfloat16"
    dtype = DType.bfloat16
    activation_dtypes: ClassVar = {"cpu": DType.float32, "gpu": DType.bfloat16}
    product_dtypes: ClassVar = (DType.float32, DType.bfloat16)

    product_dtype: DType = DType.float32

    def with_activations(self, dtype: DType) -> Encoding:
        return replace(self, product_dtype=dtype) if dtype in self.product_dtypes else self

    @property
    def kernels(self) -> str:
        return super().kernels + ("bfloat16_" if self.product_dtype == DType.bfloat16 else "")


RECORD = BFloat16()
