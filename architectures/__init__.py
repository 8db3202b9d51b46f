"""Architectures: one folder each, and `layers/`, which they share.

Shapes in names and comments: T ragged tokens of a step, B rows (requests) of a step, D hidden, N query heads,
K key/value heads, H head dim, F mlp, V vocabulary. A `Shards` list holds one graph value a device.
"""
