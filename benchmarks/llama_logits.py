"""Logits of llama.cpp, for benchmarks/encodings.py: runs in a Python that has llama-cpp-python.

python llama_logits.py MODEL.gguf LOGITS.npy < prompts.json
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

import numpy as np


def main() -> None:
    model, output = sys.argv[1:]
    llama_cpp = import_module("llama_cpp")
    prompts = json.load(sys.stdin)
    cache = llama_cpp.GGML_TYPE_F32
    llama = llama_cpp.Llama(
        model, n_ctx=2 * max(map(len, prompts)), logits_all=True, type_k=cache, type_v=cache, n_threads=2, verbose=False
    )
    logits = []
    for prompt in prompts:
        llama.reset()
        llama.eval(prompt)
        logits.append(llama.scores[: len(prompt)].copy())
    np.save(output, np.concatenate(logits))


if __name__ == "__main__":
    main()
