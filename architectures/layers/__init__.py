"""Functions over graph values that the architectures share.

Every function takes and gives `Shards`: a list with one value a device. Activations are whole on each device
between blocks; heads and mlp columns are split inside them, and one sum over the devices ends each block.
"""
