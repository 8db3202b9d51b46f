"""Two benchmarks: a load generator for OpenAI-compatible servers, and a model in this process.

The first speaks HTTP alone, and knows nothing of this package's own; `local*.py` and `machine.py` are the second.
"""
