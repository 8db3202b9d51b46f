"""Many requests at once: none is mixed up, lost or left behind, and a failure belongs to one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fake_model import assert_idle, greedy_text, prompts_of, random_prompt, text_of
from serving import Held, LiveServer, chat_pipeline, events_of, eventually, model_of, post_in_background, serving

from pipelines import SamplingParams
from pipelines.context import TextContext
from pipelines.serve.generation import Generation

pytestmark = pytest.mark.slow  # together they take seconds

PATH = "/v1/completions"


def run(server: LiveServer, work: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            return await work(client)

    return asyncio.run(main())


async def streamed_text(client: httpx.AsyncClient, **body: Any) -> str:
    async with client.stream("POST", PATH, json={"stream": True, **body}) as response:
        assert response.status_code == 200
        lines = [line async for line in response.aiter_lines()]
    return "".join(choice["text"] for chunk in events_of(iter(lines)) for choice in chunk["choices"])


def wait_until_idle(server: LiveServer) -> None:
    eventually(lambda: not server.service.num_admitted and not server.pipe.engine.has_work)
    server.pipe.cache.check()
    assert server.pipe.cache.usage == 0 and server.pipe.cache.num_requests == 0
    assert not server.service._running


@pytest.mark.parametrize("caching", [pytest.param(False, marks=pytest.mark.slow), True])
def test_64_streams_at_once_give_what_each_gives_alone(caching: bool) -> None:
    rng = random.Random(0)
    prompts = [random_prompt(rng, rng.randrange(1, 150)) for _ in range(64)]
    bodies: list[dict[str, Any]] = [
        {"prompt": prompt, "max_tokens": 20, "ignore_eos": True, "temperature": i % 2, "seed": i}
        for i, prompt in enumerate(prompts)
    ]

    async def all_at_once(client: httpx.AsyncClient) -> list[str]:
        return await asyncio.gather(*(streamed_text(client, **body) for body in bodies))

    with serving(chat_pipeline(enable_prefix_caching=caching)) as server:
        texts = run(server, all_at_once)
        wait_until_idle(server)
    alone = chat_pipeline()
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        params = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=float(i % 2), seed=i)
        assert text == alone.generate([prompt], params)[0].text


@pytest.mark.slow
def test_clients_that_leave_at_any_point_leave_nothing_behind() -> None:
    async def cut(client: httpx.AsyncClient, seed: int) -> None:
        rng = random.Random(seed)
        body = {"prompt": random_prompt(rng, rng.randrange(1, 300)), "max_tokens": 500, "ignore_eos": True, "n": 2}
        try:
            async with asyncio.timeout(rng.random()):
                if seed % 3 == 0:
                    await client.post(PATH, json=body)
                    return
                async with client.stream("POST", PATH, json={"stream": True, **body}) as response:
                    num_lines = rng.randrange(30)
                    async for _ in response.aiter_lines():
                        num_lines -= 1
                        if num_lines < 0:
                            return
        except TimeoutError:
            return

    async def many(client: httpx.AsyncClient) -> str:
        await asyncio.gather(*(cut(client, seed) for seed in range(60)))
        return await streamed_text(client, prompt="ABC", max_tokens=5, ignore_eos=True)

    with serving(chat_pipeline(enable_prefix_caching=True)) as server:
        tokens = server.pipe.tokenizer.encode("ABC")
        assert run(server, many) == text_of(greedy_text(tokens, 5, True))
        wait_until_idle(server)
    assert_idle(server.pipe)


@pytest.mark.parametrize("failure", ["broken_after", "nan_after"])
def test_a_row_that_fails_gives_its_request_an_error_and_the_others_their_answers(failure: str) -> None:
    prompts = prompts_of(*range(20, 28))
    bad = next(token for token in range(1, 60) if not any(token in greedy_text(p, 10, True) for p in prompts))
    prompts = [[token if token != bad else bad % 60 + 1 for token in prompt] for prompt in prompts]
    failing = [*prompts[0][:-1], bad]

    async def all_at_once(client: httpx.AsyncClient) -> list[httpx.Response]:
        bodies = [{"prompt": prompt, "max_tokens": 10, "ignore_eos": True} for prompt in [*prompts, failing]]
        bodies.append({**bodies[-1], "stream": True})
        return await asyncio.gather(*(client.post(PATH, json=body) for body in bodies))

    pipe = chat_pipeline()
    texts = [output.text for output in pipe.generate(prompts, SamplingParams(max_new_tokens=10, ignore_eos=True))]
    with serving() as server:
        setattr(model_of(server), failure, bad)
        *good, whole, stream = run(server, all_at_once)
        wait_until_idle(server)
    assert [response.json()["choices"][0]["text"] for response in good] == texts
    assert whole.status_code == 500 and whole.json()["error"]["type"] == "server_error"
    (event,) = events_of(stream.iter_lines())
    assert stream.status_code == 200 and event["error"]["type"] == "server_error"


def test_masks_that_leave_no_token_are_the_clients_error() -> None:
    body = {"prompt": "A", "allowed_token_ids": [0], "min_tokens": 3, "max_tokens": 5}
    with serving() as server, server.client() as client:
        response = client.post(PATH, json=body)
        assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


def test_a_full_queue_is_a_429_and_health_still_answers() -> None:
    with serving(chat_pipeline(max_batch_size=1), max_queue_size=1) as server, server.client() as client:
        held = Held(server)
        first = post_in_background(server, PATH, prompt="AB", max_tokens=2, n=2)
        assert held.is_held.wait(30)
        for body in ({"prompt": "A"}, {"prompt": "A", "stream": True}):
            response = client.post(PATH, json=body)
            assert response.status_code == 429 and response.headers["retry-after"] == "1"
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert response.headers["content-type"] == "application/json"
        assert client.get("/health").status_code == 200
        held.may_go_on.set()
        assert first().status_code == 200
        assert client.post(PATH, json={"prompt": "A"}).status_code == 200


def test_a_request_that_takes_too_long_is_cut() -> None:
    with serving(request_timeout_s=0.3) as server:
        held = Held(server)
        whole = post_in_background(server, PATH, prompt="AB")
        stream = post_in_background(server, PATH, prompt="AB", stream=True)
        assert whole().status_code == 504 and whole().json()["error"]["code"] == "request_timeout"
        assert events_of(stream().iter_lines())[-1]["error"]["code"] == "request_timeout"
        held.may_go_on.set()
        wait_until_idle(server)


def test_a_defect_of_the_engine_ends_every_request_and_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server, server.client() as client:
        plan = server.pipe.engine.scheduler.plan

        def broken() -> Any:
            monkeypatch.setattr(server.pipe.engine.scheduler, "plan", plan)
            raise RuntimeError("a defect")

        monkeypatch.setattr(server.pipe.engine.scheduler, "plan", broken)
        assert client.post(PATH, json={"prompt": "A"}).status_code == 500
        assert client.post(PATH, json={"prompt": "A"}).status_code == 200


def test_observers_see_every_chunk() -> None:
    class Observer:
        num_submitted = num_tokens = num_refused = 0

        def on_submit(self, generation: Generation) -> None:
            assert generation.num_choices == 2
            self.num_submitted += len(generation.contexts)

        def on_chunk(self, context: TextContext, chunk: Any) -> None:
            self.num_tokens += len(chunk.tokens)

        def on_refusal(self, error: Exception) -> None:
            self.num_refused += 1

    observer = Observer()
    with serving() as server, server.client() as client:
        server.service.observers.append(observer)
        client.post(PATH, json={"prompt": "A", "n": 2, "max_tokens": 5, "ignore_eos": True})
    assert (observer.num_submitted, observer.num_tokens, observer.num_refused) == (2, 10, 0)
