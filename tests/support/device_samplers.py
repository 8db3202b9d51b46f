"""The device's sampler on the CPU, for the tests that share its graphs."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

from max.driver import CPU
from max.engine import InferenceSession, read
from max.graph import DeviceRef

from pipelines.sampling.device.graphs import build_graphs
from pipelines.sampling.device.sampler import DeviceSampler

VOCAB_SIZE = 1003
"""No whole number of groups."""


@functools.cache
def cpu_sampler() -> DeviceSampler:
    """The module goes through a file, as a start's that keeps its graphs."""
    session, graphs = InferenceSession(devices=[CPU()]), build_graphs(VOCAB_SIZE, DeviceRef.CPU())
    with TemporaryDirectory() as folder:
        file = Path(folder) / "sampler.mef"
        session.compile(graphs).export_mef(file)
        return DeviceSampler(session.init_all(read(file)), CPU(), VOCAB_SIZE)
