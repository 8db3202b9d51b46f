"""Loading: from a checkpoint's files to the weights of a graph."""
