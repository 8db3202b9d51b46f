"""The encoding float32, of matrices and activations."""

from __future__ import annotations

from typing import ClassVar

from max.dtype import DType

from pipelines.loading.encoding import DenseEncoding


class Float32(DenseEncoding):
    """Matrices and activations in float32."""

    name = "float32"
    dtype = DType.float32
    activation_dtypes: ClassVar = {"cpu": DType.float32, "gpu": DType.float32}


RECORD = Float32()
