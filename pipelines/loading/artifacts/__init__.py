"""Graphs that were compiled ahead of time: a folder of compiled files, and a manifest of what they were made for."""
