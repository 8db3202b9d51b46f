"""The work of a model's steps, from shapes alone: bytes that decoding reads, operations that a prompt takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kv_cache import KVCacheParams
from pipelines.benchmark.local_settings import LocalTest
from pipelines.load import weight_bytes

if TYPE_CHECKING:
    from pipelines.load import PreparedPipeline

_HEADS = ("lm_head.weight", "embed_tokens.weight")  # the first that a checkpoint has
_OF_IMAGES = ("vision_tower.", "multi_modal_projector.")
_EXPERTS = ".experts."


@dataclass(frozen=True)
class Weights:
    """Some of a model's weights. bytes: in the memory of the run. num_values: of matrices."""

    bytes: int = 0
    num_values: int = 0

    def __add__(self, other: Weights) -> Weights:
        return Weights(self.bytes + other.bytes, self.num_values + other.num_values)


@dataclass(frozen=True)
class ModelWork:
    """The work of a model's steps: the weights, keys and values that they read and multiply.

    shared: weights that each token is multiplied by. head: those of each row's last token. experts: of which a token
    is multiplied by the share `expert_share`. num_heads: query heads. kv_params: page groups, whose layers attend.
    """

    shared: Weights
    head: Weights
    experts: Weights
    expert_share: float
    num_heads: int
    kv_params: KVCacheParams

    @classmethod
    def of(cls, prepared: PreparedPipeline) -> ModelWork:
        """Counts the weights of a run whose checkpoint is open."""
        weights = {name: _weights(prepared, name) for name in prepared.state_dict}
        head = next(name for name in _HEADS if name in weights)
        tables = {*prepared.architecture.lookup_tables, *_HEADS}
        text = {name: w for name, w in weights.items() if name not in tables and not name.startswith(_OF_IMAGES)}
        config = prepared.checkpoint.huggingface_config.get_text_config().to_dict()
        return cls(
            shared=sum((w for name, w in text.items() if _EXPERTS not in name), Weights()),
            head=weights[head],
            experts=sum((w for name, w in text.items() if _EXPERTS in name), Weights()),
            expert_share=(config.get("num_experts_per_tok") or 1) / (config.get("num_experts") or 1),
            num_heads=config["num_attention_heads"],
            kv_params=prepared.kv_params,
        )

    def bytes_read(self, test: LocalTest) -> float:
        """Bytes that the steps of generation read: each weight once a step, and the keys and values that a row sees.

        Of the experts as many as random rows choose.
        """
        chosen = 1 - (1 - self.expert_share) ** test.batch_size
        weights = self.shared.bytes + self.head.bytes + chosen * self.experts.bytes
        cache = sum(
            group.page_bytes / group.page_size * self._num_seen(group.window, test) for group in self.kv_params.groups
        )
        return test.length * weights + test.batch_size * cache

    def num_operations(self, test: LocalTest) -> float:
        """Operations of a prompt's products and of its attention, two for a multiplication and an addition."""
        per_token = self.shared.num_values + self.expert_share * self.experts.num_values
        products = test.num_tokens * per_token + test.batch_size * self.head.num_values
        attention = sum(
            2 * group.num_layers * self.num_heads * group.head_dim * self._num_seen(group.window, test)
            for group in self.kv_params.groups
        )
        return 2 * (products + test.batch_size * attention)

    @staticmethod
    def _num_seen(window: int | None, test: LocalTest) -> int:
        """Tokens that the tokens of a row see, themselves included, all added up."""
        return sum(min(position + 1, window or math.inf) for position in range(test.depth, test.max_row_tokens))  # type: ignore[misc]


def _weights(prepared: PreparedPipeline, name: str) -> Weights:
    data = prepared.state_dict[name]
    shape = [int(dim) for dim in data.shape]
    num_bytes = weight_bytes(prepared.config, prepared.architecture, name, data)
    return Weights(num_bytes, math.prod(shape) if len(shape) > 1 else 0)
