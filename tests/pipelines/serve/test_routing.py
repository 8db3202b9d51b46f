"""Which replica a request is sent to."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from pipelines.serve.routing import KEY_CHARS, MAX_KEYS, PrefixRouter, RoutingSettings, prompt_keys

SYSTEM = {"role": "system", "content": "s" * 3 * KEY_CHARS}
QUESTION = {"role": "user", "content": "q" * 2 * KEY_CHARS}
OTHER = {"role": "user", "content": "another" * KEY_CHARS}


def keys_of(**request: Any) -> list[int]:
    return prompt_keys(json.dumps(request).encode())


def num_common(first: list[int], second: list[int]) -> int:
    return len(set(first) & set(second))


def router_of(num_replicas: int, **settings: Any) -> PrefixRouter:
    router = PrefixRouter(RoutingSettings(**settings))
    router.set_replicas([f"r{i}" for i in range(num_replicas)])
    return router


def idle(num_replicas: int, **loads: int) -> dict[str, int]:
    return {f"r{i}": 0 for i in range(num_replicas)} | loads


class TestKeys:
    def test_next_turn_has_all_keys_of_the_last(self) -> None:
        first = keys_of(messages=[SYSTEM, QUESTION])
        answer = {"role": "assistant", "content": "a" * KEY_CHARS}
        second = keys_of(messages=[SYSTEM, QUESTION, answer, OTHER])
        assert len(first) == 5
        assert second[: len(first)] == first
        assert len(second) > len(first)

    def test_common_beginning_has_common_keys(self) -> None:
        first, second = keys_of(messages=[SYSTEM, QUESTION]), keys_of(messages=[SYSTEM, OTHER])
        assert num_common(first, second) == 3

    @pytest.mark.parametrize("name", ["prompt", "input", "instructions", "system", "tools"])
    def test_prompts_of_all_apis_count(self, name: str) -> None:
        assert len(keys_of(**{name: "x" * 2 * KEY_CHARS})) == 2
        assert not num_common(keys_of(**{name: "x" * KEY_CHARS}), keys_of(**{name: "y" * KEY_CHARS}))

    @pytest.mark.parametrize("label", [{"prompt_cache_key": "k"}, {"user": "k"}, {"metadata": {"user_id": "k"}}])
    def test_label_is_a_key_of_its_own(self, label: dict[str, Any]) -> None:
        labelled = keys_of(messages=[QUESTION], **label)
        assert labelled[0] == keys_of(messages=[], **label)[0] == keys_of(messages=[OTHER], **label)[0]
        assert not num_common(labelled, keys_of(messages=[QUESTION]))

    def test_cache_salt_separates(self) -> None:
        salts = [keys_of(messages=[QUESTION], prompt_cache_key="k", cache_salt=salt) for salt in "ab"]
        assert not num_common(*salts)

    def test_prompt_cache_key_goes_before_the_user(self) -> None:
        assert keys_of(prompt_cache_key="k", user="a") == keys_of(prompt_cache_key="k", user="b")

    @pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b'{"messages": 7, "metadata": 1}'])
    def test_what_is_no_request_has_none(self, body: bytes) -> None:
        assert prompt_keys(body) == []

    def test_short_prompt_has_none(self) -> None:
        assert keys_of(prompt="x" * (KEY_CHARS - 1)) == []

    def test_number_is_bounded(self) -> None:
        assert len(keys_of(prompt="x" * KEY_CHARS * (MAX_KEYS + 3))) == MAX_KEYS

    def test_lone_surrogate_is_no_error(self) -> None:
        assert len(prompt_keys(b'{"prompt": "' + b"\\ud800" * KEY_CHARS + b'"}')) == 1


class TestChoice:
    def test_prompt_goes_where_it_is_held(self) -> None:
        router = router_of(8)
        router.remember([1, 2, 3], "r5")
        assert router.choose([1, 2, 3, 4], idle(8)) == "r5"

    def test_longest_beginning_wins(self) -> None:
        router = router_of(8)
        router.remember([1, 2], "r1")
        router.remember([1, 2, 3], "r2")
        assert router.choose([1, 2, 3], idle(8)) == "r2"
        assert router.choose([1, 2, 4], idle(8, r2=1)) == "r1"  # both have it: the less loaded one

    def test_overloaded_holder_is_passed_over(self) -> None:
        router = router_of(4)
        router.remember([1, 2], "r1")
        router.remember([1], "r2")
        loads = idle(4, r1=8)  # mean 2.25 with the new request, bound 3
        assert router.load_bound(loads) == 3
        assert router.choose([1, 2], loads) == "r2"
        assert router.choose([1, 2], idle(4, r1=8, r2=8)) in {"r0", "r3"}

    def test_bound_leaves_a_replica_to_choose(self) -> None:
        rng = random.Random(0)
        for _ in range(300):
            router = router_of(count := rng.randint(1, 9), free_load=rng.randint(0, 3), load_factor=1.0)
            loads = {f"r{i}": rng.randint(0, 20) for i in range(count)}
            assert router.load_bound(loads) > min(loads.values())
            assert loads[router.choose([rng.randrange(99)], loads)] < router.load_bound(loads)

    def test_new_prompts_spread_and_stay(self) -> None:
        router = router_of(4)
        chosen = [router.choose([key], idle(4)) for key in range(400)]
        assert chosen == [router_of(4).choose([key], idle(4)) for key in range(400)]
        counts = Counter(chosen)
        # Binomial(400, 1/4): mean 100, standard deviation 8.7; five of them.
        assert len(counts) == 4
        assert all(56 < count < 144 for count in counts.values())

    def test_another_replica_moves_only_its_share(self) -> None:
        before = [router_of(4).choose([key], idle(4)) for key in range(400)]
        after = [router_of(5).choose([key], idle(5)) for key in range(400)]
        assert {new for old, new in zip(before, after, strict=True) if old != new} == {"r4"}

    def test_routers_in_other_processes_agree(self) -> None:
        code = (
            "from pipelines.serve.routing import PrefixRouter; router = PrefixRouter(); names = [f'r{i}' for i in "
            "range(9)]; router.set_replicas(names); print([router.choose([k], dict.fromkeys(names, 0)) for k in "
            "range(50)])"
        )
        runs = {subprocess.check_output([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}) for seed in "12"}
        assert runs == {f"{[router_of(9).choose([key], idle(9)) for key in range(50)]}\n".encode()}

    def test_without_keys_the_least_loaded(self) -> None:
        assert router_of(3).choose([], {"r0": 2, "r1": 1, "r2": 3}) == "r1"

    def test_order_has_every_replica_once(self) -> None:
        router = router_of(4)
        router.remember([1], "r2")
        assert router.order([1], {"r0": 1, "r1": 0, "r2": 1, "r3": 2}) == ["r2", "r1", "r0", "r3"]

    def test_replica_that_may_not_be_chosen_is_not(self) -> None:
        router = router_of(3)
        router.remember([1], "r2")
        assert router.choose([1], {"r0": 0, "r1": 0}) != "r2"


class TestMemory:
    def test_replica_that_is_gone_is_forgotten(self) -> None:
        router = router_of(3)
        router.remember([1, 2], "r2")
        router.set_replicas(["r0", "r1"])
        assert router.choose([1, 2], idle(2)) in {"r0", "r1"}
        router.remember([1, 2], "r2")  # its last request may have been sent before that was known
        assert router.choose([1, 2], {"r0": 0, "r1": 0}) in {"r0", "r1"}

    def test_ends_are_forgotten_before_beginnings(self) -> None:
        router = router_of(2, max_keys=3)
        router.remember([1, 2, 3], "r1")
        router.remember([9], "r1")
        router.remember([3], "r0")
        assert router.choose([1, 2, 3], idle(2)) == "r0"
        assert router.choose([1, 2], idle(2)) == "r1"

    def test_memory_is_bounded(self) -> None:
        router = router_of(2, max_keys=100)
        for start in range(0, 10_000, 10):
            router.remember(range(start, start + 10), f"r{start % 2}")
        assert [len(keys) for keys in router._keys.values()] == [100, 0]
        assert len(router._holders) == 100
