"""An estimate of the memory that a step takes beside weights and cache."""

from __future__ import annotations

from architectures.decoder.config import DecoderConfig

LOGIT_COPIES = 3
"""Rows of float32 that are alive together: the head's product as float32, its soft-capped or compared form, and each
row's last position."""


def activation_bytes(config: DecoderConfig, num_tokens: int, num_rows: int) -> int:
    """Bytes of a step's largest moment on the first device, which has the embedding and the head too.

    The compiler lets values share memory that are not alive together: of a layer either attention or the feed-forward
    block counts. Logits count for one position of each row: a request that asks for those of its whole prompt
    (`prompt_logprobs`) takes more, from what `device_memory_utilization` leaves. So do heads of sizes that MAX's flash
    attention does not have on a GPU, whose scores are in memory for all rows at once.

    Args:
        config: The configuration of a run.
        num_tokens: Tokens of the step.
        num_rows: Its rows.
    """
    size, num_devices = config.dtype.size_in_bytes, len(config.devices)
    residual = 4 * config.hidden_size  # the stream, its norm, what a block returns, and the embeddings of images
    widest = max(_attention_width(config, num_devices), config.feed_forward_width // num_devices)
    per_token = (residual + widest + config.per_token_input_width) * size
    per_row = config.vocab_size * (size + LOGIT_COPIES * 4)
    return num_tokens * per_token + num_rows * per_row


def _attention_width(config: DecoderConfig, num_devices: int) -> int:
    """Values of a token that attention holds at once: the projections, their normalized copy, and what it returns."""
    widths = []
    for layer_type in set(config.layer_types):
        num_kv_heads, head_dim = config.kv_heads(layer_type)
        num_heads = config.num_attention_heads // num_devices
        num_kv_heads = -(-num_kv_heads // num_devices)
        widths.append((3 * num_heads + 4 * num_kv_heads) * head_dim)
    return max(widths)
