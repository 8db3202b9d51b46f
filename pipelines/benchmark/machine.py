"""The processor's limits: the bandwidth of its memory and its float32 arithmetic, measured in about two seconds."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_READ_BYTES = 512 * 2**20  # of all cores together: more than their caches hold
_MATRIX_SIZE = 1536  # large enough for all cores, small enough for a few dozen products in the time
_SECONDS = 0.8


@dataclass(frozen=True)
class Machine:
    """The processor. read_bytes_per_s, float32_flops_per_s: the best of the passes; None: not measured."""

    processor: str
    num_cores: int
    read_bytes_per_s: float | None = None
    float32_flops_per_s: float | None = None

    @classmethod
    def describe(cls) -> Machine:
        """Names the processor, and measures nothing."""
        return cls(processor_name(), num_cores())

    @classmethod
    def measure(cls, seconds: float = _SECONDS) -> Machine:
        """Measures the processor, for `seconds` each; whatever else it does is missing from the numbers."""
        return cls(processor_name(), num_cores(), measure_read(seconds), measure_float32(seconds))


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The name that the system gives the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure_read(seconds: float, num_bytes: int = _READ_BYTES) -> float:
    """Bytes a second that all cores read from memory: each adds up the integers of an array of its own."""
    count = num_bytes // num_cores() // 8
    arrays = [np.ones(count, np.int64) for _ in range(num_cores())]
    with ThreadPoolExecutor(len(arrays)) as threads:
        return sum(array.nbytes for array in arrays) / _best(lambda: list(threads.map(np.add.reduce, arrays)), seconds)


def measure_float32(seconds: float, size: int = _MATRIX_SIZE) -> float:
    """Operations a second, two for a multiplication and an addition, of numpy's product of square float32 matrices."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    out = np.empty_like(a)
    return 2 * size**3 / _best(lambda: np.matmul(a, b, out=out), seconds)


def _best(work: Callable[[], object], seconds: float) -> float:
    """The shortest time of a call, of as many as fit into the seconds, after one that does not count."""
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
