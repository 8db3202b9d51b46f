"""The device's sampler on the CPU, for the tests that share its graphs."""

from __future__ import annotations

import functools

from max.driver import CPU
from max.engine import InferenceSession
from max.graph import DeviceRef

from pipelines.sampling.device.graphs import build_graphs
from pipelines.sampling.device.sampler import DeviceSampler

VOCAB_SIZE = 1003
"""No whole number of groups."""


@functools.cache
def cpu_sampler() -> DeviceSampler:
    session, graphs = InferenceSession(devices=[CPU()]), build_graphs(VOCAB_SIZE, DeviceRef.CPU())
    return DeviceSampler(session.init_all(session.compile(graphs)), CPU(), VOCAB_SIZE)
