"""The device's sampler on the CPU, for the tests that share its graphs."""

from __future__ import annotations

import functools

from max.driver import CPU
from max.engine import InferenceSession
from max.graph import DeviceRef

from pipelines.loading.graphs import TracedGraphs
from pipelines.sampling.device.graphs import trace_graphs
from pipelines.sampling.device.sampler import DeviceSampler

VOCAB_SIZE = 1003
"""No whole number of groups."""


@functools.cache
def cpu_sampler() -> DeviceSampler:
    graphs = TracedGraphs(trace_graphs(VOCAB_SIZE, DeviceRef.CPU()))
    return DeviceSampler.load(graphs, InferenceSession(devices=[CPU()]), CPU(), VOCAB_SIZE)
