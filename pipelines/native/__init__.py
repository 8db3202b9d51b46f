"""Mojo code that the host calls directly, without a graph, and the compilation of all Mojo code of the project."""
