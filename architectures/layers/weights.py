"""The declaration of a graph's weights: their devices, their shards, and the checkpoint tensors they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NewType

from max.dtype import DType
from max.graph import DeviceRef, Graph, TensorValue, Weight

from pipelines.loading.blocks import StoredType
from pipelines.loading.encoding import Encoding, Matrix
from pipelines.loading.encodings.float8_e4m3fn import Float8Config
from pipelines.loading.encodings.gguf import stored_encoding
from pipelines.loading.weight_spec import WeightSource, WeightSpec

Replicated = NewType("Replicated", list[TensorValue])
"""Values, one per device, that are equal on all devices."""
Sharded = NewType("Sharded", list[TensorValue])
"""Values, one per device: each device's heads or columns of a whole."""
Partial = NewType("Partial", list[TensorValue])
"""Values, one per device, whose sum is the result: `all_reduce` makes them `Replicated`."""


class WeightTable:
    """The weights that a graph has declared.

    dtype: of the activations, and of vectors such as norms and biases. encoding: of matrices, if it can hold them.
    devices: the devices of the graph. stored: types of the checkpoint's tensors, by the graph's names. quant_config:
    scaling of tensors in float8. specs: the specifications of the weights for the loader, in order.
    """

    def __init__(
        self,
        dtype: DType,
        encoding: Encoding,
        devices: Sequence[DeviceRef],
        stored: Mapping[str, StoredType] | None = None,
        quant_config: Float8Config | None = None,
    ) -> None:
        self.dtype, self.encoding, self.devices = dtype, encoding, list(devices)
        self.stored, self.quant_config = stored or {}, quant_config
        self.specs: list[WeightSpec] = []
        self._declared: dict[str, TensorValue] = {}

    def on_first_device(self, name: str, shape: Sequence[int]) -> TensorValue:
        """Declares a weight [*shape] in the type of the activations on the first device only."""
        return self._declare(self._spec(name, [WeightSource(name, tuple(shape))], self.dtype, shard=0))

    def replicated(self, name: str, shape: Sequence[int]) -> Replicated:
        """Declares a weight [*shape] in the type of the activations, whole on every device."""
        return Replicated(self._on_all_devices(name, [WeightSource(name, tuple(shape))], self.dtype))

    def stacked(self, name: str, sources: Sequence[WeightSource]) -> Sharded:
        """Declares concatenated vectors, each device with its share of every source: [sum of shares]."""
        return Sharded(self._on_all_devices(name, sources, self.dtype))

    def lookup_table(self, name: str, shape: tuple[int, int], on_device: bool) -> Matrix:
        """Declares a matrix [rows, columns] in its stored type: on the first device, or on the host, in the file."""
        stored_as = self.stored.get(name, self.dtype)

        def declare(name: str, sources: Sequence[WeightSource], _: StoredType) -> list[TensorValue]:
            spec = WeightSpec(name, stored_as, tuple(sources), num_shards=len(self.devices), is_on_host=not on_device)
            return [self._declare(spec)]

        (matrix,) = stored_encoding(stored_as).declare(declare, name, [WeightSource(name, shape)], None)
        return matrix

    def matrices(self, name: str, sources: Sequence[WeightSource], encoding: Encoding | None = None) -> list[Matrix]:
        """Declares matrices stacked along axis 0, each device with its share of every source.

        They are in this encoding if it is not that of the others.
        """
        record = (encoding or self.encoding).of_matrix(sources, len(self.devices), self.stored, self.quant_config)
        return record.declare(self._on_all_devices, name, sources, self.quant_config)

    def replicated_matrices(self, name: str, shape: tuple[int, int]) -> list[Matrix]:
        """Declares a matrix [out, in], whole on every device."""
        return self.matrices(name, [WeightSource(name, shape)])

    def matrix_on_first_device(self, name: str, shape: tuple[int, int]) -> Matrix:
        """Declares a matrix [out, in] on the first device only."""

        def declare(name: str, sources: Sequence[WeightSource], stored_as: StoredType) -> list[TensorValue]:
            return [self._declare(self._spec(name, sources, stored_as, shard=0))]

        sources = [WeightSource(name, shape)]
        record = self.encoding.of_matrix(sources, len(self.devices), self.stored, self.quant_config)
        (matrix,) = record.declare(declare, name, sources, self.quant_config)
        return matrix

    def _on_all_devices(self, name: str, sources: Sequence[WeightSource], stored_as: StoredType) -> list[TensorValue]:
        names = [name if len(self.devices) == 1 else f"{name}.shard{i}" for i in range(len(self.devices))]
        return [self._declare(self._spec(name, sources, stored_as, shard)) for shard, name in enumerate(names)]

    def _spec(self, name: str, sources: Sequence[WeightSource], stored_as: StoredType, shard: int) -> WeightSpec:
        return WeightSpec(name, stored_as, tuple(sources), shard, len(self.devices), self.quant_config)

    def _declare(self, spec: WeightSpec) -> TensorValue:
        """Declares a weight, or returns the one that has this name, as for a tied head.

        It is declared as living on its device, where the loader places it: by default MAX would expect it in host
        memory, and move it within the graph.
        """
        if spec.name not in self._declared:
            self.specs.append(spec)
            weight = Weight(spec.name, spec.dtype, list(spec.shape), device=spec.device_ref(self.devices))
            self._declared[spec.name] = Graph.current.add_weight(weight, force_initial_weight_on_host=False)
        return self._declared[spec.name]
