"""The graphs of a model, from wherever they come: traced and compiled now, or compiled ahead of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from max.engine import CompiledModel, InferenceSession

from pipelines.loading.weight_spec import TracedGraph, WeightSpec


class Graphs(Protocol):
    """The graphs of one model, by name, with all that is needed to load each."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the graphs."""

    @property
    def stage(self) -> tuple[str, str]:
        """Name and detail of the stage in which a graph becomes ready to run."""

    def weights(self, name: str) -> Sequence[WeightSpec]:
        """Specifications of a graph's weights."""

    def compile_async(self, name: str, session: InferenceSession) -> CompiledModel:
        """Starts to make a graph ready for its weights, and returns while that goes on."""

    def keep(self) -> None:
        """Keeps the graphs that were compiled for the next start, if that is wanted and all are there."""


class TracedGraphs:
    """Graphs that were traced in this process, and are compiled on request."""

    stage = ("compile", "a minute or two, once for each shape of model")

    def __init__(self, graphs: Mapping[str, TracedGraph]) -> None:
        self._graphs = graphs

    @property
    def names(self) -> Sequence[str]:
        """Names of the graphs."""
        return tuple(self._graphs)

    def weights(self, name: str) -> Sequence[WeightSpec]:
        """Specifications of a graph's weights."""
        return self._graphs[name].weights

    def compile_async(self, name: str, session: InferenceSession) -> CompiledModel:
        """Starts the compilation of a graph."""
        graph = self._graphs[name].graph
        with graph:  # which makes MLIR's context this thread's: a server loads in a thread of its own
            return session.compile_async(graph)

    def keep(self) -> None:
        """Does nothing."""


class SomeGraphs:
    """Those of a set of graphs that one owner loads."""

    def __init__(self, graphs: Graphs, names: Sequence[str]) -> None:
        self._graphs, self.names = graphs, names

    @property
    def stage(self) -> tuple[str, str]:
        """Name and detail of the stage in which a graph becomes ready to run."""
        return self._graphs.stage

    def weights(self, name: str) -> Sequence[WeightSpec]:
        """Specifications of a graph's weights."""
        return self._graphs.weights(name)

    def compile_async(self, name: str, session: InferenceSession) -> CompiledModel:
        """Starts to make a graph ready for its weights."""
        return self._graphs.compile_async(name, session)

    def keep(self) -> None:
        """Keeps the whole set, once all of it has been compiled."""
        self._graphs.keep()
