"""Gemma 3 with images: the text model of `gemma3` and a SigLIP vision tower (https://arxiv.org/abs/2303.15343)."""
