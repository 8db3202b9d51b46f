"""Sampling: parameters, logits processors, the choice of a token, log probabilities."""
