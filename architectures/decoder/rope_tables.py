"""RoPE tables on the devices of a run, only as long as its requests need them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from max.driver import Buffer, Device

from architectures.decoder.config import DecoderConfig

MIN_POSITIONS = 4096


def rope_table_bytes(config: DecoderConfig, num_positions: int) -> int:
    """Bytes of the tables of so many positions on each device, with the halves that are freed once they have grown."""
    return num_positions * sum(config.rope_dims.values()) * 4 * 3 // 2


class RopeTables:
    """A table [positions, H] float32 for each layer type on each device.

    They grow by doubling, up to max_positions: for a model's limit of 262,144 tokens and a head_dim of 512 they would
    take 512 MiB, even if all requests are short.
    """

    def __init__(self, config: DecoderConfig, devices: Sequence[Device], max_positions: int) -> None:
        self.config, self.devices, self.max_positions = config, devices, max_positions
        self._host: dict[str, npt.NDArray[np.float32]] = {
            layer_type: np.empty((0, width), np.float32) for layer_type, width in config.rope_dims.items()
        }
        self._placed: dict[str, list[Buffer]] = {}
        self._num_positions = 0

    def up_to(self, num_positions: int) -> dict[str, list[Buffer]]:
        """Returns tables for at least the positions below `num_positions`, by layer type and device.

        Raises:
            ValueError: The run does not allow so many positions.
        """
        if num_positions > self.max_positions:
            raise ValueError(f"position {num_positions - 1} is beyond the limit of {self.max_positions} tokens")
        if num_positions > self._num_positions:
            self._grow(min(self.max_positions, max(MIN_POSITIONS, 1 << (num_positions - 1).bit_length())))
        return self._placed

    def _grow(self, num_positions: int) -> None:
        for layer_type, rope in self.config.rope_parameters.items():
            old = self._host[layer_type]
            added = rope.table(num_positions, old.shape[1], first_position=len(old))
            self._host[layer_type] = table = np.concatenate([old, added])
            self._placed[layer_type] = [Buffer.from_numpy(table).to(device) for device in self.devices]
        self._num_positions = num_positions
