"""The router of examples/ray_serve.py, in the form that Ray Serve calls.

It is a file of its own because Ray Serve sends the module of a router to the processes that route.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from pipelines.serve.routing import PrefixRouter


class PrefixRequestRouter(RequestRouter):  # type: ignore[misc]
    """Orders the replicas for each request of a gateway by `PrefixRouter`; full ones are passed over by Ray."""

    def initialize_state(self, **_: Any) -> None:
        """Begins with an empty memory."""
        self._router = PrefixRouter()
        self._num_running = Counter[ReplicaID]()  # requests of this gateway

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Replaces the set of replicas."""
        super().update_replicas(replicas)
        self._router.set_replicas([each.unique_id for each in self._replica_id_set])
        self._num_running = Counter({each: self._num_running[each] for each in self._replica_id_set})

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Returns the replicas in the order in which they are tried."""
        replicas = {each.replica_id.unique_id: each for each in candidate_replicas}
        if pending_request is None or not replicas:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # before all of them are tried again
        loads = {name: self._load(each.replica_id) for name, each in replicas.items()}
        return [[replicas[name]] for name in self._router.order(pending_request.kwargs["keys"], loads)]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Counts a request."""
        super().on_send_request(replica_id)
        self._num_running[replica_id] += 1

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remembers where a prompt went."""
        self._router.remember(pending_request.kwargs["keys"], replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Counts a request no longer."""
        self._num_running[replica_id] = max(0, self._num_running[replica_id] - 1)

    def _load(self, replica_id: ReplicaID) -> int:
        """Requests that a replica runs: what it said last, which counts other gateways, or our own."""
        return max(self._num_running[replica_id], self.replica_queue_len_cache.get(replica_id) or 0)
