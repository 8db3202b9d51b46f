"""Architectures: a folder for each family, and `decoder/`, `layers/` and `kernels/`, which they share.

Shapes in names and comments: T ragged tokens of a step, B rows (requests) of a step, M positions whose logits are
returned, D hidden, N query heads, K key/value heads, H head dim, F mlp, V vocabulary. Values on several devices are
lists with one graph value per device: `Replicated`, `Sharded` or `Partial` (`layers/weights.py`).
"""
