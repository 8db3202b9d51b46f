"""GET /metrics: the requests and the engine, in Prometheus' text format, under the names that vLLM has for them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Counter, Histogram, generate_latest

from pipelines.context import TextChunk, TextContext
from pipelines.serve.engine_metrics import LABELS, PREFIX, EngineCollector
from pipelines.serve.errors import ApiError
from pipelines.serve.generation import Generation
from pipelines.serve.service import Service

# Buckets are those of vLLM, so that its dashboards and alerts read both.
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
)
_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
)
_TOKENS = (*(digit * 10.0**power for power in range(6) for digit in (1, 2, 5)), 1e6)  # for models of any length
_CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)

HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": ("Time from the request to its first token.", _FIRST_TOKEN_S),
    "inter_token_latency_seconds": ("Time between two tokens, or pieces of several, of a sequence.", _TOKEN_S),
    "request_time_per_output_token_seconds": ("Mean time between the tokens of a sequence.", _TOKEN_S),
    "e2e_request_latency_seconds": ("Time from the request to the end of a sequence.", _REQUEST_S),
    "request_queue_time_seconds": ("Time that a sequence waited for its first step.", _REQUEST_S),
    "request_prefill_time_seconds": ("Time from a sequence's first step to its first token.", _REQUEST_S),
    "request_decode_time_seconds": ("Time from a sequence's first token to its last one.", _REQUEST_S),
    "request_inference_time_seconds": ("Time from a sequence's first step to its last token.", _REQUEST_S),
    "request_prompt_tokens": ("Tokens of a sequence's prompt.", _TOKENS),
    "request_generation_tokens": ("Tokens that a sequence generated.", _TOKENS),
    "request_max_num_generation_tokens": ("Most tokens that one of a prompt's choices generated.", _TOKENS),
    "request_params_n": ("Choices of a prompt.", _CHOICES),
    "request_params_max_tokens": ("Most tokens that a request allowed for a sequence.", _TOKENS),
}
"""Histograms that requests fill, by their names without the prefix: their help and their buckets."""

FINISHED_REASONS = {"stop": "stop", "length": "length", "cancelled": "abort", "error": "error"}
"""vLLM's names of the reasons for which a sequence ends."""


@dataclass
class _Prompt:
    """A prompt whose choices have not all ended. max_output_tokens: of those that have."""

    arrived: float
    num_choices: int
    num_open: int
    max_output_tokens: int = 0


@dataclass
class _Sequence:
    """A sequence that has not ended. last_token: when its last one came here."""

    prompt: _Prompt
    last_token: float | None = None


class Metrics:
    """Observes a service: counts its requests and their tokens, and measures their times.

    The time to the first token, between tokens and to the end are those that a client sees, from the arrival of its
    request to the event loop; the others are those of the engine (`RequestTimes`).

    registry: the metrics of this server.
    """

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self._labels = dict(zip(LABELS, (service.settings.served_model_names[0], "0"), strict=True))
        self.registry.register(EngineCollector(service, self._labels))
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were computed or cached.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens that were generated.")
        success = Counter(
            f"{PREFIX}request_success", "Sequences that ended.", (*LABELS, "finished_reason"), registry=self.registry
        )
        self._success = {
            reason: success.labels(**self._labels, finished_reason=name) for reason, name in FINISHED_REASONS.items()
        }
        self._rejections = Counter(
            f"{PREFIX}admission_rejections",
            "Requests refused with 429 or 503.",
            (*LABELS, "reason"),
            registry=self.registry,
        )
        self._histograms = {name: self._histogram(name) for name in HISTOGRAMS}
        self._open: dict[TextContext, _Sequence] = {}

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(PREFIX + name, text, LABELS, registry=self.registry).labels(**self._labels)

    def _histogram(self, name: str) -> Histogram:
        text, buckets = HISTOGRAMS[name]
        return Histogram(PREFIX + name, text, LABELS, registry=self.registry, buckets=buckets).labels(**self._labels)

    def on_submit(self, generation: Generation) -> None:
        """Begins to watch the sequences of a request."""
        count = generation.num_choices
        for start in range(0, len(generation.contexts), count):
            prompt = _Prompt(generation.arrived, count, count)
            for context in generation.contexts[start : start + count]:
                self._open[context] = _Sequence(prompt)

    def on_chunk(self, context: TextContext, chunk: TextChunk) -> None:
        """Counts a chunk's tokens; with the last one, the sequence."""
        now, sequence = time.monotonic(), self._open[context]
        if chunk.tokens:
            self._generation_tokens.inc(len(chunk.tokens))
            if sequence.last_token is None:
                self._prompt_tokens.inc(context.num_prompt_tokens)
                self._histograms["time_to_first_token_seconds"].observe(now - sequence.prompt.arrived)
            else:
                self._histograms["inter_token_latency_seconds"].observe(now - sequence.last_token)
            sequence.last_token = now
        if chunk.finish_reason is not None:
            del self._open[context]
            self._success[chunk.finish_reason].inc()
            self._observe_sequence(context, now - sequence.prompt.arrived)
            self._observe_choice(context, sequence.prompt)

    def on_refusal(self, error: ApiError) -> None:
        """Counts a refusal by the error's code."""
        self._rejections.labels(**self._labels, reason=error.code or str(error.status_code)).inc()

    def _observe_sequence(self, context: TextContext, seconds: float) -> None:
        times, num_gaps = context.times, context.num_output_tokens - 1
        observed = {
            "e2e_request_latency_seconds": seconds,
            "request_queue_time_seconds": times.queue_s,
            "request_prefill_time_seconds": times.prefill_s,
            "request_decode_time_seconds": times.decode_s,
            "request_inference_time_seconds": times.inference_s,
            "request_time_per_output_token_seconds": (times.decode_s or 0.0) / num_gaps if num_gaps > 0 else None,
            "request_prompt_tokens": context.num_prompt_tokens,
            "request_generation_tokens": context.num_output_tokens,
            "request_params_max_tokens": context.params.max_new_tokens,
        }
        for name, value in observed.items():
            if value is not None:  # a sequence may end before it is scheduled, or has a token
                self._histograms[name].observe(value)

    def _observe_choice(self, context: TextContext, prompt: _Prompt) -> None:
        prompt.num_open -= 1
        prompt.max_output_tokens = max(prompt.max_output_tokens, context.num_output_tokens)
        if not prompt.num_open:
            self._histograms["request_params_n"].observe(prompt.num_choices)
            self._histograms["request_max_num_generation_tokens"].observe(prompt.max_output_tokens)


def metrics_router(metrics: Metrics) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", response_class=Response)
    async def get_metrics() -> Response:
        """The metrics of the server, in Prometheus' text format."""
        # Whatever the client accepts: in OpenMetrics the library writes an underscore for the colon of the names.
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return router
