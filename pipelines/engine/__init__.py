"""The step loop: the scheduler, a step in two halves, and the consumers of its logits."""
