"""The choice of tokens by graphs, on the device that holds the logits."""
