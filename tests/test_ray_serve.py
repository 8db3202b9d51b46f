"""Replicas behind one endpoint, with Ray Serve: examples/ray_serve.py around the fake model."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import fake_model
import httpx
import kv_caches
import pytest
import serving
from serving import chat_pipeline, eventually

from pipelines.serve.routing import KEY_CHARS
from pipelines.serve.settings import ServeSettings
from pipelines.text_generation import TextGenerationPipeline

pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own
    import ray_serve
    from ray import cloudpickle, serve
    from ray.exceptions import RayError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]

NUM_RUNNING, STEP_S = 2, 0.03
HEADERS = {"Authorization": "Bearer a key"}
LONG: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True}
"""An answer of half a minute, in which a test does what it has to do."""
QUESTION = "1" * KEY_CHARS
CHATS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def load() -> TextGenerationPipeline:
    """A pipeline whose steps take a while."""
    pipe = chat_pipeline(max_length=2000, max_batch_size=NUM_RUNNING, max_batch_tokens=2000, enable_prefix_caching=True)
    pipe.model.during_step = lambda: time.sleep(STEP_S)  # type: ignore[attr-defined]
    return pipe


class Deployed:
    """The deployment under test."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.scale = ray_serve.ScaleSettings(2, num_running=NUM_RUNNING, num_queued=1)

    def deploy(self) -> None:
        settings = ServeSettings(served_model_names=("m",), api_key="a key")
        ray_serve.deploy(ray_serve.application(load, settings, self.scale))

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, headers=HEADERS)

    def states(self) -> dict[int, int]:
        """The number of sequences in each replica's process; nothing while one is dying. A full one answers later."""
        handle = serve.get_deployment_handle(ray_serve.REPLICAS, ray_serve.APP)
        try:
            return dict(handle.broadcast("state").results(timeout_s=30))
        except RayError:
            return {}

    def busy(self) -> list[int]:
        """Processes that run something."""
        return [process for process, num_running in self.states().items() if num_running]

    def is_idle(self) -> bool:
        return len(states := self.states()) == 2 and not any(states.values())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Deployed]:
    for module in (fake_model, kv_caches, serving, sys.modules[__name__]):
        cloudpickle.register_pickle_by_value(module)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ray_serve.cluster(None, 3, "127.0.0.1", port):
        deployed = Deployed(port)
        deployed.deploy()
        yield deployed


@pytest.fixture
def deployed(cluster: Deployed) -> Deployed:
    """The deployment, with two replicas that run nothing."""
    eventually(cluster.is_idle, timeout_s=90)
    return cluster


def chat(text: str = QUESTION, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 4} | more


class Asking:
    """A request in a thread of its own."""

    def __init__(self, client: httpx.Client, body: dict[str, Any]) -> None:
        self._answers: list[httpx.Response] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(client.post(CHATS, json=body)))
        self._thread.start()

    def join(self) -> httpx.Response:
        self._thread.join()
        return self._answers[0]


def first_line(lines: Iterator[str]) -> str:
    return next(line for line in lines if line)


def test_answers_are_those_of_the_server(deployed: Deployed) -> None:
    with deployed.client() as client:
        answer = client.post(CHATS, json=chat(), headers={"X-Request-Id": "mine"})
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] <= 4
        assert answer.headers["X-Request-Id"] == "mine"
        assert client.get("/v1/models").json()["data"][0]["id"] == "m"
        assert client.get("/ready").status_code == 200
        assert client.post(CHATS, json={"model": "m", "messages": []}).status_code == 400
        assert client.post(CHATS, content=b"{").status_code == 400
        assert client.get("/nothing").status_code == 404


def test_key_is_asked_for(deployed: Deployed) -> None:
    answer = httpx.post(deployed.url + CHATS, json=chat())
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_same_beginning_goes_to_the_same_replica(deployed: Deployed) -> None:
    with deployed.client() as client:
        answers = [client.post(CHATS, json=chat(QUESTION + "2" * i)) for i in range(6)]
    assert len({answer.headers["X-Replica"] for answer in answers}) == 1
    cached = [answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert all(num_cached > 0 for num_cached in cached[1:])


def test_events_come_one_by_one_and_leaving_cancels(deployed: Deployed) -> None:
    with deployed.client() as client, client.stream("POST", CHATS, json=chat(stream=True, **LONG)) as answer:
        lines = answer.iter_lines()
        assert first_line(lines).startswith("data: {")
        assert len(deployed.busy()) == 1  # the answer has not ended, and its first event is here
    eventually(lambda: not deployed.busy())


def test_leaving_cancels_an_answer_that_is_no_stream(deployed: Deployed) -> None:
    with deployed.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(CHATS, json=chat(**LONG), timeout=1)
    eventually(lambda: not deployed.busy())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHATS, chat(**LONG)),
        (RESPONSES, {"model": "m", "input": QUESTION, "max_output_tokens": 900, "ignore_eos": True}),
        (MESSAGES, chat(**LONG)),
    ],
)
def test_stream_of_a_killed_replica_ends_with_an_error_event(
    deployed: Deployed, path: str, body: dict[str, Any]
) -> None:
    with deployed.client() as client, client.stream("POST", path, json={**body, "stream": True}) as answer:
        lines = answer.iter_lines()
        first_line(lines)
        (victim,) = eventually(deployed.busy)
        os.kill(victim, signal.SIGKILL)
        rest = [line for line in lines if line]
        assert client.post(CHATS, json=chat()).status_code == 200  # the other one serves
    if path == CHATS:
        assert rest.pop() == "data: [DONE]"
    else:
        assert rest[-2] == "event: error"
    assert "was lost" in json.loads(rest[-1].removeprefix("data: "))["error"]["message"]


def test_answer_of_a_killed_replica_is_an_error(deployed: Deployed) -> None:
    with deployed.client() as client:
        asking = Asking(client, chat(**LONG))
        (victim,) = eventually(deployed.busy)
        os.kill(victim, signal.SIGKILL)
        answer = asking.join()
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "replica_lost"


def test_more_than_fits_is_refused_and_what_waits_is_served(deployed: Deployed) -> None:
    with deployed.client() as client, ExitStack() as running:
        streams = list[Iterator[str]]()  # an iterator that is dropped closes its stream
        for number in range(1, 2 * NUM_RUNNING + 1):  # one by one: of several at once, more are refused than must be
            body = chat(str(number), stream=True, **LONG)
            answer = running.enter_context(client.stream("POST", CHATS, json=body))
            assert answer.status_code == 200
            streams.append(answer.iter_lines())
            first_line(streams[-1])
        waiting = Asking(client, chat("5"))
        refused = eventually(lambda: refusal(client))
        assert refused is not None
        assert refused.json()["error"]["type"] == "service_unavailable_error"
        assert int(refused.headers["Retry-After"]) > 0
        running.close()
        assert waiting.join().status_code == 200


def refusal(client: httpx.Client) -> httpx.Response | None:
    """A request that is refused because one waits; None if it was the one that waited, and its client left."""
    try:
        answer = client.post(CHATS, json=chat("6"), timeout=0.5)
    except httpx.ReadTimeout:
        return None
    assert answer.status_code == 503
    return answer


def test_replacement_finishes_what_runs(deployed: Deployed) -> None:
    before = set(deployed.states())
    with deployed.client() as client, client.stream("POST", CHATS, json=chat(stream=True, **LONG)) as answer:
        lines = answer.iter_lines()
        first_line(lines)
        deployed.scale = replace(deployed.scale, generation=deployed.scale.generation + 1)
        deployed.deploy()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert "error" not in json.loads(rest[-2].removeprefix("data: "))
    eventually(lambda: len(now := set(deployed.states())) == 2 and not now & before, timeout_s=90)
