"""The simulation of routing: benchmarks/routing.py."""

from __future__ import annotations

import pytest
from routing import POLICIES, Figures, Simulation

NUM_REPLICAS, NUM_REQUESTS = 4, 600


def simulated(policy: str, seed: int = 0, num_routers: int = 1, num_replicas: int = NUM_REPLICAS) -> Figures:
    simulation = Simulation(num_replicas, seed)
    choosers = [POLICIES[policy](list(simulation.replicas)) for _ in range(num_routers)]
    return simulation.run(choosers, NUM_REQUESTS)


def cached(figures: Figures) -> float:
    return figures.num_cached / figures.num_prompt


@pytest.mark.parametrize("policy", POLICIES)
def test_seed_decides(policy: str) -> None:
    assert simulated(policy).row() == simulated(policy).row()
    assert simulated(policy).row() != simulated(policy, seed=1).row()


@pytest.mark.parametrize("policy", POLICIES)
def test_half_of_the_requests_count_once_each(policy: str) -> None:
    figures = simulated(policy)
    assert sum(figures.requests) == len(figures.first_token_s) == NUM_REQUESTS // 2
    assert 0 < figures.num_cached < figures.num_prompt


def test_one_replica_leaves_nothing_to_choose() -> None:
    first, *others = [simulated(policy, num_replicas=1).row() for policy in POLICIES]
    assert all(row == first for row in others)


@pytest.mark.parametrize("num_routers", [1, 3])
def test_affinity_finds_more_and_its_bound_spreads_the_load(num_routers: int) -> None:
    even, bounded = simulated("round robin"), simulated("prefix affinity, 1.25 x mean", num_routers=num_routers)
    assert cached(bounded) > cached(even)
    unbounded = simulated("prefix affinity, no bound", num_routers=num_routers)
    assert max(bounded.imbalances) < max(unbounded.imbalances)
