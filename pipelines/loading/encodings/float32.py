"""float32 matrices and activations."""

from __future__ import annotations

from typing import ClassVar

from max.dtype import DType

from pipelines.loading.encoding import DenseEncoding


class Float32(DenseEncoding):
    """32-bit floating point throughout."""

    name = "float32"
    dtype = DType.float32
    activation_dtypes: ClassVar = {"cpu": DType.float32, "gpu": DType.float32}


RECORD = Float32()
