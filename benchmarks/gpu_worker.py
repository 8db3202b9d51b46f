"""One system of gpu.py on one model, or the measurements of the machine: `gpu_worker.py SETTINGS`, a JSON object."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
DEPTH = 128
"""Tokens that a row has before it decodes."""
WARM_UP_STEPS = 4


def emit(settings: dict[str, Any], row: str, **results: Any) -> None:
    """Prints one result."""
    rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in results.items()}
    print(json.dumps({"system": settings["system"], "model": settings["model"], "row": row} | rounded), flush=True)


def median_seconds(work: Callable[[], object], wait: Callable[[], object], count: int) -> float:
    """Median of the seconds of so many calls, each waited for, after one that does not count."""
    times = []
    for _ in range(count + 1):
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@contextmanager
def reporting(settings: dict[str, Any], row: str, **place: Any) -> Iterator[None]:
    """Reports what fails, and lets the rows that follow be measured."""
    try:
        yield
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        emit(settings, row, **place, error=message[:500])


def measure_machine(settings: dict[str, Any]) -> dict[str, float]:
    """Copy bandwidth of the device, bytes read and written; its bfloat16 product; copies from and to the host."""
    import torch

    on_gpu = settings["devices"] != "cpu"
    device, wait = ("cuda", torch.cuda.synchronize) if on_gpu else ("cpu", lambda: None)
    num_bytes, size = (2**32, 8192) if on_gpu else (2**27, 1024)
    x = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    host = torch.empty(num_bytes // 16, dtype=torch.uint8)
    part = torch.empty_like(host, device=device)
    results = {
        "copy_bytes_per_s": 2 * num_bytes / median_seconds(lambda: y.copy_(x), wait, 10),
        "bfloat16_flops_per_s": 2 * size**3 / median_seconds(lambda: torch.matmul(a, b), wait, 10),
        "host_to_device_bytes_per_s": len(host) / median_seconds(lambda: part.copy_(host), wait, 5),
        "device_to_host_bytes_per_s": len(host) / median_seconds(lambda: host.copy_(part), wait, 5),
    }
    name = torch.cuda.get_device_name(0) if on_gpu else "cpu"
    emit(settings, "machine", device=name, torch=torch.__version__, max=version("max"), **results)
    path = Path(settings["work"]) / "machine.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results))
    return results


def machine(settings: dict[str, Any]) -> dict[str, float]:
    """The measurements of the machine's own process."""
    return json.loads((Path(settings["work"]) / "machine.json").read_text())  # type: ignore[no-any-return]


def config_folder(settings: dict[str, Any]) -> Path:
    """Folder of the model's config.json."""
    if settings["folder"] == "demo":
        return HERE.parent / "pipelines" / "demo-base"
    return HERE.parent / "tests" / "configs" / str(settings["folder"])


def random_prompts(count: int, length: int, vocab_size: int) -> list[list[int]]:
    return np.random.default_rng([count, length]).integers(10, vocab_size, (count, length)).tolist()  # type: ignore[no-any-return]


class Pipelines:
    """This package."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from random_weights import random_state_dict, write_empty_checkpoint

        from pipelines.benchmark.local_work import ModelWork
        from pipelines.load import prepare_pipeline

        self.settings, source = settings, config_folder(settings)
        start = time.perf_counter()
        folder = Path(settings["work"]) / settings["model"]
        tokenizer = HERE.parent / "pipelines" / "demo-base"
        write_empty_checkpoint(folder, source / "config.json", _tensors(source), tokenizer)
        self.limit = _max_length(source)
        prepared = prepare_pipeline(self._config(str(folder)))
        prepared = replace(prepared, state_dict=random_state_dict(prepared.state_dict))
        self.work, self.devices = ModelWork.of(prepared), prepared.devices
        opened = time.perf_counter()
        before = self._free()
        self.pipe = prepared.load()
        done = time.perf_counter()
        self.vocab_size = self.pipe.prompts.vocab_size
        taken = before - self._free()
        weights = self.work.shared + self.work.head + self.work.experts
        emit(
            settings,
            "load",
            open_s=opened - start,
            load_s=done - opened,
            weights_bytes=weights.bytes,
            cache_bytes=prepared.plan.bytes,
            device_bytes_taken=taken,
            max_length=prepared.plan.max_length,
        )

    def _config(self, folder: str) -> Any:
        from pipelines import PipelineConfig

        settings = self.settings
        longest = max([DEPTH + settings["steps"], *settings["prompts"]]) + 16
        return PipelineConfig(
            model=folder,
            devices=settings["devices"],
            quantization_encoding=settings["encoding"],
            max_length=min(self.limit, longest),
            max_batch_size=max(settings["batches"]),
            max_batch_tokens=settings["max_batch_tokens"],
            generation_config="none",
            custom_architectures=_architectures(),
        )

    def _free(self) -> int:
        return int(self.devices[0].stats["free_memory"])

    def decode(self, batch: int) -> None:
        """A step of a batch: by the engine, sampling and bookkeeping included."""
        from pipelines import SamplingParams
        from pipelines.benchmark.local_settings import LocalTest

        engine, steps = self.pipe.engine, self.settings["steps"]
        params = SamplingParams(max_new_tokens=steps + WARM_UP_STEPS + 2, ignore_eos=True, temperature=0)
        contexts = self.pipe.submit(random_prompts(batch, DEPTH, self.vocab_size), params)
        while not all(context.num_output_tokens > WARM_UP_STEPS for context in contexts):
            engine.step()
            _raise(contexts)
        times = []
        while not any(context.is_finished for context in contexts):
            start = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - start)
        _raise(contexts)
        while engine.has_work:
            engine.step()
        seconds = statistics.median(times)
        num_bytes = self.work.bytes_read(LocalTest("generate", 1, DEPTH, batch))
        share = num_bytes / seconds / machine(self.settings)["copy_bytes_per_s"]
        emit(
            self.settings,
            "decode",
            batch=batch,
            step_ms=seconds * 1e3,
            tokens_per_s=batch / seconds,
            bandwidth_share=share,
        )

    def prefill(self, length: int) -> None:
        """A prompt by itself, up to its first token."""
        from pipelines import SamplingParams
        from pipelines.benchmark.local_settings import LocalTest

        length = min(length, self.pipe.prompts.max_length - 1)
        prompts = random_prompts(1, length, self.vocab_size)
        params = SamplingParams(max_new_tokens=1, ignore_eos=True, temperature=0)

        def run() -> None:
            (output,) = self.pipe.generate(prompts, params)
            if output.error is not None:
                raise output.error

        seconds = median_seconds(run, lambda: None, 3)
        num_operations = self.work.num_operations(LocalTest("prompt", length, 0, 1))
        share = num_operations / seconds / machine(self.settings)["bfloat16_flops_per_s"]
        speed = length / seconds
        emit(self.settings, "prefill", prompt=length, seconds=seconds, tokens_per_s=speed, arithmetic_share=share)

    def step(self, batch: int) -> None:
        """The parts of a decode step, in milliseconds, each waited for before the next begins.

        inputs: page tables and token inputs, made and copied to the device. launch: the call of the graph. kernels: the
        wait that follows. copy_tokens, copy_logits: to the host. back_to_back: a step if nothing is waited for, which
        is the longer of launch and kernels.
        """
        from pipelines.context import TextContext

        pipe, device = self.pipe, self.devices[0]
        contexts = [TextContext(f"row {i}", p) for i, p in enumerate(random_prompts(batch, DEPTH, self.vocab_size))]
        for context in contexts:
            context.pages, context.num_scheduled_tokens = pipe.cache.open(), 1
            assert pipe.cache.allocate(context.pages, DEPTH + 1)
            pipe.cache.commit(context.pages, DEPTH - 1)
        rows = [context.pages for context in contexts if context.pages]
        parts: dict[str, list[float]] = {}

        def note(name: str, start: float) -> float:
            parts.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
            return time.perf_counter()

        for _ in range(self.settings["steps"] + WARM_UP_STEPS):
            now = time.perf_counter()
            pages = pipe.cache.runtime_inputs(rows, [1] * batch)
            inputs = pipe.model.prepare_initial_token_inputs([contexts], pages)
            device.synchronize()
            now = note("inputs_ms", now)
            outputs = pipe.model.execute(inputs)
            now = note("launch_ms", now)
            device.synchronize()
            now = note("kernels_ms", now)
            outputs.greedy_tokens.to_numpy()
            now = note("copy_tokens_ms", now)
            outputs.next_token_logits.to_numpy()
            note("copy_logits_ms", now)
        count = self.settings["steps"]
        start = time.perf_counter()
        for _ in range(count):
            outputs = pipe.model.execute(inputs)
        device.synchronize()
        back_to_back = (time.perf_counter() - start) / count * 1e3
        for row in rows:
            pipe.cache.release(row)
        medians = {name: statistics.median(times[WARM_UP_STEPS:]) for name, times in parts.items()}
        emit(self.settings, "step", batch=batch, **medians, back_to_back_ms=back_to_back)


class Transformers:
    """transformers with its own attention kernels (sdpa), in bfloat16, with weights made on the device."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        self.torch, self.settings, self.on_gpu = torch, settings, settings["devices"] != "cpu"
        config = AutoConfig.from_pretrained(config_folder(settings)).get_text_config()
        start = time.perf_counter()
        self.device = "cuda" if self.on_gpu else "cpu"
        with torch.device(self.device):
            self.model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        self.model.eval()
        self.limit, self.vocab_size = config.max_position_embeddings, config.vocab_size
        self.wait()
        emit(settings, "load", load_s=time.perf_counter() - start, transformers=version("transformers"))

    def wait(self) -> None:
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def _compute(self, tokens: Any, cache: Any) -> Any:
        with self.torch.inference_mode():
            logits = self.model(tokens, past_key_values=cache, logits_to_keep=1).logits
            return logits[:, -1].argmax(-1, keepdim=True)

    def _open(self, batch: int, length: int) -> tuple[Any, Any]:
        from transformers import DynamicCache

        prompts = random_prompts(batch, length, self.vocab_size)
        return self.torch.tensor(prompts, device=self.device), DynamicCache(config=self.model.config)

    def decode(self, batch: int) -> None:
        """A step of a batch, as `generate` does it."""
        tokens, cache = self._open(batch, DEPTH)
        times = []
        for _ in range(1 + WARM_UP_STEPS + self.settings["steps"]):
            start = time.perf_counter()
            tokens = self._compute(tokens, cache)
            self.wait()
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times[1 + WARM_UP_STEPS :])
        emit(self.settings, "decode", batch=batch, step_ms=seconds * 1e3, tokens_per_s=batch / seconds)

    def prefill(self, length: int) -> None:
        """A prompt by itself, in one step."""
        length = min(length, self.limit - 1)

        def run() -> None:
            self._compute(*self._open(1, length))

        seconds = median_seconds(run, self.wait, 3)
        emit(self.settings, "prefill", prompt=length, seconds=seconds, tokens_per_s=length / seconds)

    def step(self, batch: int) -> None:
        """Nothing: its steps are not taken apart."""


def _raise(contexts: list[Any]) -> None:
    for context in contexts:
        if context.error is not None:
            raise context.error


def _architectures() -> tuple[str, ...]:
    """The records of pyproject.toml: a package that is only on the path has no entry points."""
    import tomllib

    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    return tuple(project["entry-points"]["pipelines.architectures"].values())


def _tensors(source: Path) -> dict[str, tuple[str, list[int]]]:
    """Names, types and shapes of a model's tensors."""
    if (source / "model.safetensors").exists():
        from safetensors import safe_open

        with safe_open(source / "model.safetensors", "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return {name: (entry.get_dtype(), entry.get_shape()) for name, entry in slices.items()}
    sys.path.insert(0, str(HERE.parent / "tests" / "support"))
    from published import tensors_of

    return tensors_of(source)


def _max_length(source: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(source).get_text_config().max_position_embeddings)


def main() -> None:
    settings = json.loads(sys.argv[1])
    if settings["system"] == "machine":
        measure_machine(settings)
        return
    system = (Pipelines if settings["system"] == "pipelines" else Transformers)(settings)
    for row, values in (("decode", "batches"), ("step", "batches"), ("prefill", "prompts")):
        for value in settings[values] if row in settings["rows"] else ():
            with reporting(settings, row, **{"batch" if values == "batches" else "prompt": value}):
                getattr(system, row)(value)


if __name__ == "__main__":
    main()
