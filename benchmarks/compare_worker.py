"""One system of compare.py in a process of its own, under the Python that has it: this file needs numpy and the system.

    compare_worker.py SYSTEM MODEL ENCODING MAX_LENGTH

It loads the model, prints a line of JSON with version and settings, then answers requests, a line of JSON each:
{"open": [prompt, ...]} computes the prompts, given as token ids, up to the first token of each, and answers with the
seconds that took; {"decode": n} adds n tokens to each and answers with the seconds of the steps; {"close": true} drops
them. A line {"error": text} ends the process. Every system takes the likeliest token, and all cores.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

Prompts = list[list[int]]
NUM_THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class System(Protocol):
    """A loaded model and the rows that it continues. settings: what a reader of its numbers has to know."""

    settings: dict[str, Any]

    def open(self, prompts: Prompts) -> None:
        """Computes the prompts and the first token of each."""

    def step(self) -> None:
        """Computes one more token of each row."""

    def close(self) -> None:
        """Drops the rows."""


class Pipelines:
    """This package: its engine, with the tokenizer's work for each token."""

    def __init__(self, model: str, encoding: str, max_length: int) -> None:
        from pipelines import PipelineConfig
        from pipelines.load import prepare_pipeline

        weights, _, activations = encoding.partition("@")
        name, _, head = weights.partition("+")
        optional = {"head_encoding": head, "activation_encoding": activations}
        fields: dict[str, Any] = {"quantization_encoding": name} | {
            key: value for key, value in optional.items() if value
        }
        config = PipelineConfig(model=model, max_length=max_length, max_batch_size=8, **fields)
        prepared = prepare_pipeline(config)
        # Pages for one long row, or eight short ones.
        lengths, step = (max_length, *[1024] * 8), config.max_step_tokens
        pages = {g.name: sum(g.max_pages(n, step) for n in lengths) for g in prepared.kv_params.groups}
        self.pipe = replace(prepared, plan=replace(prepared.plan, num_pages=pages)).load()
        self.rows: list[Any] = []
        cache_type = self.pipe.cache.params.groups[0].dtype.name
        self.settings = {"version": version("graph-pipelines"), "max": version("max"), "KV cache": cache_type, **fields}

    def open(self, prompts: Prompts) -> None:
        from pipelines import SamplingParams

        self.rows = self.pipe.submit(prompts, SamplingParams(max_new_tokens=None, ignore_eos=True, temperature=0))
        while not all(row.chunks for row in self.rows):
            self.step()

    def step(self) -> None:
        self.pipe.engine.step()
        if error := next((row.error for row in self.rows if row.error), None):
            raise error

    def close(self) -> None:
        for row in self.rows:
            self.pipe.cancel(row)
        self.rows = []


class Transformers:
    """transformers with torch."""

    def __init__(self, model: str, encoding: str, max_length: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(NUM_THREADS)
        self.torch, dtype = torch, getattr(torch, encoding)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        self.settings = {"version": version("transformers"), "torch": version("torch"), "KV cache": encoding}

    def open(self, prompts: Prompts) -> None:
        from transformers import DynamicCache

        self.cache, self.tokens = DynamicCache(config=self.model.config), self.torch.tensor(prompts)
        self.step()

    def step(self) -> None:
        with self.torch.inference_mode():
            logits = self.model(self.tokens, past_key_values=self.cache, logits_to_keep=1).logits
            self.tokens = logits[:, -1].argmax(-1, keepdim=True)

    def close(self) -> None:
        del self.cache, self.tokens


class OpenVINO:
    """OpenVINO GenAI's continuous batching, which its LLMPipeline uses too; whole prompts in one step, as there."""

    def __init__(self, model: str, encoding: str, max_length: int) -> None:
        self.ov, self.genai = import_module("openvino"), import_module("openvino_genai")
        scheduler = self.genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = 2**31
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": NUM_THREADS}
        if encoding == "float32":
            properties["INFERENCE_PRECISION_HINT"] = "f32"  # otherwise bfloat16 where the processor has it
        self.pipe = self.genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        self.handles: list[Any] = []
        self.num_requests = 0
        core = self.ov.Core()
        asked = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
        defaults = {name: str(core.get_property("CPU", name)) for name in asked}
        self.settings = {"version": version("openvino-genai"), **defaults, **properties}

    def open(self, prompts: Prompts) -> None:
        config = self.genai.GenerationConfig(max_new_tokens=2**20, ignore_eos=True, do_sample=False)
        for prompt in prompts:
            tokens = self.ov.Tensor(np.array([prompt], np.int64))
            self.handles.append(self.pipe.add_request(self.num_requests, tokens, config))
            self.num_requests += 1
        waiting = list(self.handles)
        while waiting:
            self.pipe.step()
            waiting = [handle for handle in waiting if not handle.can_read()]

    def step(self) -> None:
        self.pipe.step()

    def close(self) -> None:
        for handle in self.handles:
            handle.stop()
        self.handles = []
        while self.pipe.has_non_finished_requests():
            self.pipe.step()


class LlamaCpp:
    """llama.cpp through its own functions: batches of up to 512 tokens, flash attention where it chooses it."""

    def __init__(self, model: str, encoding: str, max_length: int) -> None:
        self.lib = import_module("llama_cpp")
        self.log = self.lib.llama_log_callback(lambda *_: None)
        self.lib.llama_log_set(self.log, None)
        self.lib.llama_backend_init()
        self.model = self.lib.llama_model_load_from_file(model.encode(), self.lib.llama_model_default_params())
        if not self.model:
            raise ValueError(f"can't load {model}")
        self.vocab_size = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        self.context, self.shape = None, (0, 0)
        info = self.lib.llama_print_system_info().decode()
        self.settings = {"version": version("llama-cpp-python"), "KV cache": "float16", "system": info}

    def open(self, prompts: Prompts) -> None:
        self._open_context(len(prompts), len(prompts[0]) + 1024)
        self.positions, self.next = [0] * len(prompts), [0] * len(prompts)
        for row, prompt in enumerate(prompts):
            for start in range(0, len(prompt), 512):
                self._decode([(row, token) for token in prompt[start : start + 512]], start + 512 >= len(prompt))

    def step(self) -> None:
        self._decode(list(enumerate(self.next)), True)

    def close(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)

    def _open_context(self, num_rows: int, length: int) -> None:
        if self.shape == (num_rows, length):
            return
        if self.context is not None:
            self.lib.llama_batch_free(self.batch)
            self.lib.llama_free(self.context)
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = num_rows * length, num_rows, 512, 512
        params.n_threads = params.n_threads_batch = NUM_THREADS
        params.swa_full = False  # its command's own default: sliding layers keep their window
        self.context, self.shape = self.lib.llama_init_from_model(self.model, params), (num_rows, length)
        self.batch = self.lib.llama_batch_init(512, 0, num_rows)

    def _decode(self, tokens: list[tuple[int, int]], has_logits: bool) -> None:
        """Computes tokens of rows; with logits those of each row's last one."""
        last = {row: number for number, (row, _) in enumerate(tokens)}
        batch = self.batch
        batch.n_tokens = len(tokens)
        for number, (row, token) in enumerate(tokens):
            batch.token[number], batch.pos[number] = token, self.positions[row]
            batch.n_seq_id[number], batch.seq_id[number][0] = 1, row
            batch.logits[number] = has_logits and last[row] == number
            self.positions[row] += 1
        if code := self.lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode answers {code}")
        for row, number in last.items() if has_logits else ():
            logits = self.lib.llama_get_logits_ith(self.context, number)
            self.next[row] = int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())


SYSTEMS: dict[str, Callable[[str, str, int], System]] = {
    "pipelines": Pipelines,
    "OpenVINO": OpenVINO,
    "llama.cpp": LlamaCpp,
    "transformers": Transformers,
}


def timed(work: Callable[[], None]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def answer(system: System, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request."""
    if "open" in request:
        return {"seconds": timed(lambda: system.open(request["open"]))}
    if "decode" in request:
        return {"steps": [timed(system.step) for _ in range(request["decode"])]}
    system.close()
    return {}


def main(name: str, model: str, encoding: str, max_length: str) -> None:
    """Loads a system and answers the requests on standard input."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand between the answers
    try:
        system = SYSTEMS[name](model, encoding, int(max_length))
        print(json.dumps(system.settings), file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(system, json.loads(line))), file=out, flush=True)
    except Exception as error:
        print(json.dumps({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
