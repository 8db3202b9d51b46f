"""Page groups: the layers that share page tables, the tokens that they keep, and the shape of their pages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from max.dtype import DType
from max.graph import BufferType, DeviceRef, TensorType
from max.nn.kv_cache import KVCacheInputsPerDevice, MHAKVCacheParams

SCALE_BYTES = 4
"""Bytes of a head's scale."""


@dataclass(frozen=True)
class PageGroup:
    """Layers that share page tables.

    dtype: the type of keys and values; int8 with a float32 scale for each token and head, which follows its values.
    window: tokens that a layer's query sees, itself included; None: all before it.
    page_size: tokens of a page, which holds keys and values of all the group's layers.

    Raises:
        ValueError: A size is out of range, or the heads can't be split over the devices.
    """

    name: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: DType
    devices: tuple[DeviceRef, ...]
    window: int | None = None
    page_size: int = 128

    def __post_init__(self) -> None:
        counts = {
            "num_layers": self.num_layers,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "number of devices": len(self.devices),
            "window": 1 if self.window is None else self.window,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} of page group '{self.name}' is {count}; it must be at least 1")
        if self.page_size < 1 or self.page_size % 128:  # the attention kernels load whole tiles of a page
            raise ValueError(f"page_size of page group '{self.name}' is {self.page_size}, not a multiple of 128")
        _ = self.max_params  # MAX checks the heads

    @cached_property
    def max_params(self) -> MHAKVCacheParams:
        """The same group as MAX's attention kernels take it; they know no scales, which are part of a head there."""
        return MHAKVCacheParams(
            dtype=self.dtype,
            head_dim=self.row_size,
            num_layers=self.num_layers,
            devices=list(self.devices),
            page_size=self.page_size,
            n_kv_heads=self.num_kv_heads,
            allow_kv_head_replication=True,
        )

    @property
    def row_size(self) -> int:
        """Elements of one head of one token: its values, and in int8 the bytes of its scale."""
        return self.head_dim + (SCALE_BYTES if self.dtype == DType.int8 else 0)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: all layers, all devices together."""
        return int(self.max_params.bytes_per_block)

    def num_pages(self, num_tokens: int) -> int:
        """Number of pages that `num_tokens` tokens fill or begin."""
        return -(-num_tokens // self.page_size)

    def num_skipped_pages(self, num_cached: int) -> int:
        """Number of leading pages that no token after the first `num_cached` sees: position q sees above q - window."""
        return 0 if self.window is None else max(0, num_cached - (self.window - 1)) // self.page_size

    def max_pages(self, num_tokens: int, max_step_tokens: int) -> int:
        """Most pages that one request of `num_tokens` ever holds, in steps of at most `max_step_tokens`."""
        whole = self.num_pages(num_tokens)
        if self.window is None:
            return whole
        # The window may begin at the last token of a page that has to stay.
        return min(whole, self.num_pages(self.window - 1 + self.page_size - 1 + max_step_tokens))


@dataclass(frozen=True)
class KVCacheParams:
    """All page groups of a model: one for each layer type.

    Raises:
        ValueError: There is no group, a name occurs twice, or groups differ in page size or devices.
    """

    groups: tuple[PageGroup, ...]

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("a KV cache needs at least one page group")
        if len({group.name for group in self.groups}) < len(self.groups):
            raise ValueError(f"page groups need distinct names, not {[group.name for group in self.groups]}")
        if len({(group.page_size, group.devices) for group in self.groups}) > 1:
            raise ValueError("page groups must agree on page_size and devices")

    @property
    def page_size(self) -> int:
        """Tokens of a page, in every group."""
        return self.groups[0].page_size

    @property
    def devices(self) -> tuple[DeviceRef, ...]:
        """The devices that share the heads of every group."""
        return self.groups[0].devices

    def group(self, name: str) -> PageGroup:
        """The group of this name.

        Raises:
            KeyError: There is none.
        """
        return {group.name: group for group in self.groups}[name]

    def symbolic_inputs(self) -> dict[str, tuple[KVCacheInputsPerDevice[TensorType, BufferType], ...]]:
        """The graph inputs of each group, one entry per device.

        Groups differ in the dimensions for pages and table width, and share the batch size.
        """
        return {group.name: group.max_params.get_symbolic_inputs(f"{group.name}_") for group in self.groups}
