"""GET /metrics: names, values and times, as Prometheus reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from fake_model import greedy_text, prompts_of, steps_of
from metric_samples import Samples, read_metrics
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from serving import (
    Held,
    LiveServer,
    chat_pipeline,
    eventually,
    model_of,
    post_and_leave,
    post_in_background,
    serving,
    stream,
)

from pipelines.context import FinishReason, RequestTimes, TextChunk, TextContext
from pipelines.sampling.params import SamplingParams
from pipelines.serve.errors import unavailable
from pipelines.serve.generation import Generation
from pipelines.serve.metrics import HISTOGRAMS, Metrics
from pipelines.serve.service import Service
from pipelines.serve.settings import ServeSettings

pytestmark = pytest.mark.slow  # together they take seconds

PATH = "/v1/completions"
CHAT = {"messages": [{"role": "user", "content": "ABC"}], "ignore_eos": True}
LONG: dict[str, Any] = {"prompt": "AB", "max_tokens": 50, "ignore_eos": True}
IDLE = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with serving(chat_pipeline(enable_prefix_caching=True)) as server:
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def gauges(samples: Samples) -> list[float]:
    return [samples.value(name) for name in IDLE]


def test_every_count_is_there_before_the_first_request(client: httpx.Client) -> None:
    samples = read_metrics(client)
    assert gauges(samples) == [0, 0, 0]
    counters = ("prompt_tokens", "generation_tokens", "num_preemptions", "prefix_cache_queries", "prefix_cache_hits")
    assert [samples.value(f"{name}_total") for name in counters] == [0] * 5
    reasons = ("stop", "length", "abort", "error")
    assert [samples.value("request_success_total", finished_reason=reason) for reason in reasons] == [0] * 4
    assert {samples.value(f"{name}_count") for name in (*HISTOGRAMS, "iteration_tokens_total")} == {0}


def test_tokens_reasons_and_choices_are_counted(client: httpx.Client, server: LiveServer) -> None:
    (prompt,) = prompts_of(7)
    stream(client, PATH, prompt=prompt, max_tokens=5, ignore_eos=True)
    client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 4, "n": 3})
    first = greedy_text(prompt, 1, True)
    client.post(PATH, json={"prompt": prompt, "max_tokens": 9, "stop_token_ids": first})
    samples = read_metrics(client)
    num_chat_tokens = len(server.pipe.tokenizer.encode("UABC;=>"))
    assert samples.value("prompt_tokens_total") == 7 + 3 * num_chat_tokens + 7
    assert samples.value("generation_tokens_total") == 5 + 3 * 4 + 1
    assert samples.value("request_success_total", finished_reason="length") == 4
    assert samples.value("request_success_total", finished_reason="stop") == 1
    assert samples.histogram("request_prompt_tokens") == (5, 14 + 3 * num_chat_tokens)
    assert samples.histogram("request_generation_tokens") == (5, 5 + 12 + 1)
    assert samples.histogram("request_params_max_tokens") == (5, 5 + 12 + 9)
    assert samples.histogram("request_params_n") == (3, 1 + 3 + 1)
    assert samples.histogram("request_max_num_generation_tokens") == (3, 5 + 4 + 1)
    assert samples.histogram("time_to_first_token_seconds")[0] == 5
    assert samples.histogram("inter_token_latency_seconds")[0] == 4 + 3 * 3
    assert samples.histogram("request_time_per_output_token_seconds")[0] == 4, "one token has no time between tokens"
    for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time", "request_inference_time"):
        assert samples.histogram(f"{name}_seconds")[0] == 5
    assert samples.value("request_params_n_bucket", le="2.0") == 2
    assert gauges(samples) == [0, 0, 0]


def test_each_prompt_of_a_request_has_its_choices(client: httpx.Client) -> None:
    client.post(PATH, json={"prompt": ["ABC", "D"], "n": 3, "max_tokens": 2, "ignore_eos": True})
    samples = read_metrics(client)
    assert samples.histogram("request_params_n") == (2, 6)
    assert samples.histogram("request_prompt_tokens") == (6, 3 * 3 + 3)


def test_steps_and_the_prefix_cache(client: httpx.Client, server: LiveServer) -> None:
    (prompt,) = prompts_of(300)
    for _ in range(2):
        client.post(PATH, json={"prompt": prompt, "max_tokens": 3, "ignore_eos": True})
    samples = read_metrics(client)
    sizes = [sum(row.count for row in step) for step in steps_of(server.pipe)]
    assert samples.histogram("iteration_tokens_total") == (len(sizes), sum(sizes))
    for bound in (1, 8, 64, 128):
        assert samples.value("iteration_tokens_total_bucket", le=f"{bound}.0") == sum(size <= bound for size in sizes)
    assert samples.value("prefix_cache_queries_total") == 600 and samples.value("prefix_cache_hits_total") == 256


def test_preemptions() -> None:
    pipe = chat_pipeline(num_pages={"full": 4, "sliding": 10}, max_batch_tokens=512)
    with serving(pipe) as server, server.client() as client:
        body = {"prompt": prompts_of(250, 240), "max_tokens": 100, "ignore_eos": True}
        assert client.post(PATH, json=body).status_code == 200
        samples = read_metrics(client)
    assert samples.value("num_preemptions_total") == pipe.engine.scheduler.num_preemptions > 0


def test_requests_that_run_and_wait() -> None:
    with serving(chat_pipeline(max_batch_size=1), max_queue_size=1) as server, server.client() as client:
        held = Held(server)
        running = post_in_background(server, PATH, **LONG)
        assert held.is_held.wait(30)
        waiting = post_in_background(server, PATH, **LONG)
        eventually(lambda: read_metrics(client).value("num_requests_waiting"))
        assert gauges(read_metrics(client)) == [1, 1, pytest.approx(1 / 100)]
        assert client.post(PATH, json=LONG).status_code == 429
        held.may_go_on.set()
        assert running().status_code == waiting().status_code == 200
        samples = read_metrics(client)
        assert gauges(samples) == [0, 0, 0]
        assert samples.value("admission_rejections_total", reason="queue_full") == 1
        assert samples.value("request_success_total", finished_reason="length") == 2


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_leaves_is_an_abort(is_streamed: bool) -> None:
    with serving() as server, server.client() as client:
        held = Held(server)
        post_and_leave(server, PATH, held.is_held.is_set, **LONG, stream=is_streamed)
        eventually(lambda: server.pipe.engine._marked)
        held.may_go_on.set()
        count = eventually(lambda: read_metrics(client).value("request_success_total", finished_reason="abort"))
        samples = read_metrics(client)
        assert count == 1 and samples.value("request_success_total", finished_reason="length") == 0
        assert samples.histogram("e2e_request_latency_seconds")[0] == 1
        assert samples.value("generation_tokens_total") == samples.histogram("request_generation_tokens")[1]
        assert gauges(samples) == [0, 0, 0]


def test_a_sequence_that_fails_is_an_error() -> None:
    with serving() as server, server.client() as client:
        model_of(server).broken_after = server.pipe.tokenizer.encode("B")[0]
        assert client.post(PATH, json={"prompt": "AB"}).status_code == 500
        samples = read_metrics(client)
        assert samples.value("request_success_total", finished_reason="error") == 1
        assert samples.value("prompt_tokens_total") == 0 and samples.histogram("request_prompt_tokens") == (1, 2)
        assert samples.histogram("request_queue_time_seconds")[0] == 1
        assert samples.histogram("request_prefill_time_seconds")[0] == 0, "it has no first token"


def test_while_the_model_is_loaded_refusals_are_counted_and_the_engine_is_silent() -> None:
    server = LiveServer(chat_pipeline())
    with server.client() as client:
        for path, body in ((PATH, LONG), ("/v1/chat/completions", CHAT)):
            assert client.post(path, json=body).status_code == 503
        assert client.get("/ready").status_code == 503
        assert client.post(PATH, json={"prompt": 5}).status_code == 400
        samples = read_metrics(client)
        assert samples.value("admission_rejections_total", reason="service_unavailable") == 2
        assert "vllm:num_requests_running" not in samples.names
        server.may_load.set()
        eventually(lambda: client.get("/ready").status_code == 200)
        assert gauges(read_metrics(client)) == [0, 0, 0]
    server.begin_shutdown()
    server.wait()


def test_what_cant_be_used_is_no_refusal() -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
    with serving(chat_pipeline(takes_images=False)) as server, server.client() as client:
        assert client.post("/v1/chat/completions", json={"messages": [image]}).status_code == 400
        assert client.post(PATH, json={"prompt": "A" * 2000}).status_code == 400
        samples = read_metrics(client)
    assert "vllm:admission_rejections_total" not in samples.names
    assert gauges(samples) == [0, 0, 0]


def test_the_layout_of_the_cache(client: httpx.Client) -> None:
    labels = {"block_size": "128", "cache_dtype": "float32", "enable_prefix_caching": "True", "num_gpu_blocks": "100"}
    for group in ("full", "sliding"):
        assert read_metrics(client).value("cache_config_info", page_group=group, **labels) == 1


def test_servers_of_one_process_share_no_metrics(client: httpx.Client) -> None:
    with serving(served_model_names=("other",)) as other, other.client() as other_client:
        assert other_client.post(PATH, json=LONG).status_code == 200
        assert read_metrics(other_client, model="other").value("generation_tokens_total") == 50
    assert read_metrics(client).value("generation_tokens_total") == 0


def test_names_keep_their_colon_whatever_the_client_accepts(client: httpx.Client) -> None:
    for accepted in ("*/*", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"):
        response = client.get("/metrics", headers={"Accept": accepted})
        assert response.headers["content-type"] == CONTENT_TYPE_PLAIN_0_0_4
        assert "\nvllm:num_requests_running{" in response.text


def test_the_key_is_asked_for() -> None:
    with serving(api_key="secret") as server, server.client() as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": "Bearer secret"}).status_code == 200


class Observed:
    """Metrics that a test tells what happens, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.metrics = Metrics(Service(lambda: None, ServeSettings(served_model_names=("m",))))  # type: ignore[arg-type, return-value]

    def submit(self, *prompts: Sequence[int], num_choices: int = 1) -> list[TextContext]:
        params = SamplingParams(max_new_tokens=40).resolved()
        contexts = [TextContext("0", list(prompt), params) for prompt in prompts for _ in range(num_choices)]
        self.metrics.on_submit(Generation(contexts, lambda *_: None, num_choices))
        return contexts

    def chunk(self, context: TextContext, num_tokens: int, reason: FinishReason | None = None) -> None:
        context.tokens += [1] * num_tokens
        context.finish_reason = reason
        self.metrics.on_chunk(context, TextChunk("", (1,) * num_tokens, finish_reason=reason))

    @property
    def samples(self) -> Samples:
        return Samples.of_registry(self.metrics.registry, "m")


def test_times_of_a_client_and_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = Observed(monkeypatch)
    (context,) = observed.submit([1] * 10)
    context.times = RequestTimes(1001.0, 1003.0, 1006.0, 1014.0)
    for now, num_tokens, reason in ((1007.0, 1, None), (1009.0, 3, None), (1015.0, 1, "length")):
        observed.now = now
        observed.chunk(context, num_tokens, reason)  # type: ignore[arg-type]
    sums = {name: observed.samples.histogram(f"{name}_seconds") for name in TIMES}
    assert sums == TIMES
    assert observed.samples.value("prompt_tokens_total") == 10
    assert observed.samples.value("generation_tokens_total") == 5


TIMES = {
    "time_to_first_token": (1, 7.0),
    "inter_token_latency": (2, 2.0 + 6.0),
    "e2e_request_latency": (1, 15.0),
    "request_queue_time": (1, 2.0),
    "request_prefill_time": (1, 3.0),
    "request_decode_time": (1, 8.0),
    "request_inference_time": (1, 11.0),
    "request_time_per_output_token": (1, 8.0 / 4),
}


def test_choices_of_several_prompts_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = Observed(monkeypatch)
    contexts = observed.submit([1] * 3, [1] * 5, num_choices=2)
    for context, num_tokens in zip(contexts, (4, 7, 2, 1), strict=True):
        observed.chunk(context, num_tokens, "length")
    assert observed.samples.histogram("request_params_n") == (2, 4)
    assert observed.samples.histogram("request_max_num_generation_tokens") == (2, 7 + 2)
    assert not observed.metrics._open


def test_a_sequence_that_was_cancelled_before_its_first_step_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = Observed(monkeypatch)
    (context,) = observed.submit([1] * 3)
    observed.now += 5
    observed.chunk(context, 0, "cancelled")
    assert observed.samples.histogram("e2e_request_latency_seconds") == (1, 5.0)
    for name in ("request_queue_time", "request_prefill_time", "request_decode_time", "time_to_first_token"):
        assert observed.samples.histogram(f"{name}_seconds") == (0, 0.0)
    assert observed.samples.value("prompt_tokens_total") == 0


def test_refusals_are_told_apart_by_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = Observed(monkeypatch)
    observed.metrics.on_refusal(unavailable("no"))
    assert observed.samples.value("admission_rejections_total", reason="service_unavailable") == 1
