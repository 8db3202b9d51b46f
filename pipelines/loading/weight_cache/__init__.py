"""Weights that were quantized while loading, kept on disk for the next start."""
