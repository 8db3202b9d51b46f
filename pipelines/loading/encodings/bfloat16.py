"""The encoding bfloat16. Activations are float32 on CPU, so that a bfloat16 checkpoint loses no precision there."""

from __future__ import annotations

from typing import ClassVar

from max.dtype import DType

from pipelines.loading.encoding import DenseEncoding


class BFloat16(DenseEncoding):
    """Matrices in bfloat16, the upper half of float32."""

    name = "bfloat16"
    dtype = DType.bfloat16
    activation_dtypes: ClassVar = {"cpu": DType.float32, "gpu": DType.bfloat16}


RECORD = BFloat16()
