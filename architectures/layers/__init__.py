"""Functions over graph values that the architectures share.

A value on several devices is a list with one graph value per device. Between blocks activations are `Replicated`,
inside a block heads and mlp columns are `Sharded`, and its result is `Partial`, which `all_reduce` sums.
"""
