"""How busy the engine keeps a device, which is simulated: forward passes and samplers take a given time.

    python benchmarks/overlap.py --batch-size 64 --step-ms 5

What the host does is real, but for the sampler's parameters: scheduling, pages, the inputs of steps, detokenizing, a
grammar's masks. Requests sample (temperature, top-k, top-p), a few want log probabilities, one is held to a JSON
schema. The device works through what is launched, in order, and the host learns of tokens when they are done. Printed
is the share of the time in which it had work, from the first step in which all requests decode until one of them ends,
beside the same with each step collected before the next one is launched.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import click
import numpy as np
from max.driver import CPU, Buffer

from kv_cache import KVCacheManager
from pipelines import PipelineConfig
from pipelines.context import TextContext
from pipelines.engine.consumers import NextToken
from pipelines.engine.step import RowOutputs
from pipelines.load import prepare_pipeline
from pipelines.pipeline_model import ModelInputs, ModelOutputs, PendingTokens, PipelineModel
from pipelines.sampling.constraints import ConstraintCompiler
from pipelines.sampling.log_probabilities import TokenLogProbs
from pipelines.sampling.params import SamplingParams
from pipelines.text_generation import TextGenerationPipeline

SCHEMA = {
    "type": "object",
    "properties": {"words": {"type": "array", "items": {"type": "string"}, "minItems": 1000}},
    "required": ["words"],
}


@dataclass
class Device:
    """A device with a queue. spans: when each launched piece of work began and ended, by `time.perf_counter`."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    def launch(self, seconds: float) -> float:
        """Queues work; when it will be done."""
        start = max(time.perf_counter(), self.spans[-1][1] if self.spans else 0.0)
        self.spans.append((start, start + seconds))
        return start + seconds

    def wait(self, done: float) -> None:
        """Waits as the host does for an event."""
        while (left := done - time.perf_counter()) > 0:
            time.sleep(left)

    def busy_share(self, since: float) -> float:
        """Share of the time with work, from `since` to the end of the last piece."""
        spans = [(start, end) for start, end in self.spans if start >= since]
        return sum(end - start for start, end in spans) / (spans[-1][1] - spans[0][0])


@dataclass
class SimulatedModel(PipelineModel):
    """A model whose step takes `step_s`; decodes_since: when all of a step's rows were decodes of a full batch."""

    device: Device
    step_s: float
    batch_size: int
    decodes_since: float | None = None

    graph_names = ("decoder",)

    @classmethod
    def trace(cls, pipeline_config: Any, huggingface_config: Any, weights: Any) -> Any:
        raise NotImplementedError

    def required_graphs(self, context: TextContext) -> Sequence[str]:
        return self.graph_names

    def compile(self, names: Any) -> None:
        pass

    def load_model(self, session: Any) -> Any:
        raise NotImplementedError

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: dict[str, tuple[Any, ...]] | None = None,
        return_n_logits: int = 1,
        pending: PendingTokens | None = None,
    ) -> ModelInputs:
        (contexts,) = replica_batches
        tokens = np.concatenate([np.asarray(context.scheduled_tokens, np.int64) for context in contexts])
        if len(tokens) == len(contexts) == self.batch_size and self.decodes_since is None:
            self.decodes_since = time.perf_counter()
        return ModelInputs()

    def prepare_next_token_inputs(self, next_tokens: Buffer, prev_model_inputs: ModelInputs) -> ModelInputs:
        raise NotImplementedError

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        self.device.launch(self.step_s)
        nothing = Buffer.from_numpy(np.zeros(1, np.float32))
        return ModelOutputs(nothing, nothing, nothing, nothing, nothing)

    @classmethod
    def get_num_layers(cls, huggingface_config: Any) -> int:
        raise NotImplementedError


@dataclass
class SimulatedSampler:
    """A sampler that takes `step_s`, and chooses random tokens within the masks."""

    device: Device
    step_s: float
    tokens: Iterator[int]

    def launch(self, outputs: ModelOutputs, rows: Sequence[RowOutputs]) -> SimulatedTokens:
        chosen = [next(self.tokens) for _ in rows]
        for number, row in enumerate(rows):
            consumer = row.context.consumer
            if row.next_sampler is not None and isinstance(consumer, NextToken) and consumer.constraint is not None:
                mask = consumer.constraint.mask().view(np.uint8)
                first = int(np.flatnonzero(mask)[0])
                chosen[number] = 8 * first + int(mask[first]).bit_length() - 1
        return SimulatedTokens(self.device, self.device.launch(self.step_s), rows, chosen)


@dataclass
class SimulatedTokens:
    """Tokens that are known when the device is done."""

    device: Device
    done: float
    rows: Sequence[RowOutputs]
    chosen: Sequence[int]

    def insert_into(self, tokens: Buffer, places: Sequence[int], rows: Sequence[int]) -> Buffer:
        return tokens

    def collect(self) -> None:
        self.device.wait(self.done)
        for row, token in zip(self.rows, self.chosen, strict=True):
            if row.next_sampler is not None:
                row.choice = token
                if (num_top := row.context.params.logprobs) is not None:
                    row.log_probs = partial(TokenLogProbs, logprob=-1.0, top=((token, -1.0),) * num_top)


def requests(pipe: TextGenerationPipeline, num: int, num_new: int) -> list[TextContext]:
    """Requests that sample: one in eight with log probabilities, one held to a schema."""
    compiler = ConstraintCompiler(pipe.tokenizer, pipe.prompts.vocab_size, pipe.tokenizer.eos_token_ids)
    contexts = []
    for number in range(num):
        params = SamplingParams(
            max_new_tokens=num_new,
            temperature=1.0,
            top_k=64,
            top_p=0.95,
            ignore_eos=True,
            logprobs=5 if number % 8 == 1 else None,
        )
        constraint = compiler.json_schema(SCHEMA) if number == 0 else None
        contexts.append(pipe.requests.generation("def read_lines(path):", params, constraint))
    return contexts


def measure(batch_size: int, num_new: int, step_s: float, sampler_s: float, alone: bool) -> str:
    """Runs a batch; the share and the host's time as a line."""
    config = PipelineConfig(max_batch_size=batch_size, max_length=1024, max_batch_tokens=4096)
    prepared = prepare_pipeline(config)
    device, rng = Device(), np.random.default_rng(0)
    tokens = iter(rng.integers(100, 200, 2 * batch_size * num_new).tolist())
    sampler = SimulatedSampler(device, sampler_s, tokens)
    model = SimulatedModel(device, step_s, batch_size)
    cache = KVCacheManager(prepared.kv_params, prepared.plan.num_pages, [CPU()])
    pipe = TextGenerationPipeline(prepared.config, model, cache, prepared.prompts, None, sampler)
    if alone:
        pipe.engine._step_overlapped = lambda sampler: pipe.engine._step_alone()  # type: ignore[method-assign]
    contexts = requests(pipe, batch_size, num_new)
    for context in contexts:
        pipe.engine.submit(context)
    gc.collect()
    gc.freeze()  # as the server does
    host_s = []
    while not any(context.is_finished for context in contexts):
        start = time.process_time()
        pipe.engine.step()
        host_s.append(time.process_time() - start)
    assert model.decodes_since is not None and not pipe.engine.stats.num_failed_steps
    share = device.busy_share(model.decodes_since)
    work = sum(end - start for start, end in device.spans if start >= model.decodes_since)
    steps = sum(start >= model.decodes_since for start, _ in device.spans) / 2
    kind = "one at a time" if alone else "overlapped"
    wall_ms, host_ms = 1000 * work / share / steps, 1000 * np.median(host_s)
    return (
        f"{kind:14} busy {share:6.1%} of the time; a step takes {wall_ms:.2f} ms, {host_ms:.2f} of them the host's own"
    )


@click.command()
@click.option("--batch-size", default=64, show_default=True)
@click.option("--new-tokens", default=300, show_default=True)
@click.option("--step-ms", default=5.0, show_default=True, help="Of the forward pass.")
@click.option("--sampler-ms", default=0.2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(batch_size: int, new_tokens: int, step_ms: float, sampler_ms: float, rounds: int) -> None:
    """Print the shares, by turns."""
    for _ in range(rounds):
        for alone in (False, True):
            print(measure(batch_size, new_tokens, step_ms / 1000, sampler_ms / 1000, alone))


if __name__ == "__main__":
    main()
