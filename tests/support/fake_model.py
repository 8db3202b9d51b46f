"""A model whose logits are a fingerprint of all that the cache holds for a row, and a pipeline around it.

It reads and writes through the pages that the cache manager names, so that a token computed twice, at a wrong place or
not at all, or a page that two requests use, changes every later token of the row.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from kv_caches import PAGE, new_cache
from max.driver import Buffer
from max.engine import InferenceSession, Model

from pipelines import PipelineConfig
from pipelines.context import TextContext
from pipelines.loading.weight_spec import TracedGraph
from pipelines.pipeline_model import ModelInputs, ModelOutputs, PipelineModel
from pipelines.text.detokenizer import IncrementalDetokenizer
from pipelines.text.prompts import PromptEncoder
from pipelines.text_generation import TextGenerationPipeline

WINDOW, VOCAB_SIZE, EOS = 200, 64, 0
HALF = VOCAB_SIZE - 1
"""A token that is half of the bytes of a character."""
UNLIMITED = {"full": 100, "sliding": 100}


def fingerprints(tokens: Sequence[int]) -> npt.NDArray[np.uint64]:
    """One number a token, of it and all before it, [T]."""
    powers = np.multiply.accumulate(np.full(len(tokens), 6364136223846793005, np.uint64))
    return np.cumsum((np.array(tokens, np.uint64) + np.uint64(1)) * powers)


def logits_of(prints_T: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """[T, V], from -4 to 4, where each fingerprint leads to numbers of its own."""
    mixed = (prints_T ^ (prints_T >> np.uint64(29)))[:, None] + np.arange(1, VOCAB_SIZE + 1, dtype=np.uint64)
    for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(multiplier)
    return ((mixed >> np.uint64(40)).astype(np.float64) / 2**21 - 4).astype(np.float32)


def greedy_text(prompt: Sequence[int], num_new: int, is_eos_ignored: bool = False) -> list[int]:
    """Tokens that the model generates after a prompt, computed without cache, batch or chunks."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + num_new:
        tokens.append(int(logits_of(fingerprints(tokens)[-1:])[0].argmax()))
        if tokens[-1] == EOS and not is_eos_ignored:
            break
    return tokens[len(prompt) :]


def text_of(tokens: Sequence[int]) -> str:
    """Text of tokens: a character for each, nothing for the one that ends a text."""
    half = chr(ord("0") + HALF)
    text = "".join(chr(ord("0") + token) for token in tokens if token != EOS)
    return text.replace(half * 2, "\u00e9").replace(half, "\ufffd")


def random_prompt(rng: random.Random, length: int) -> list[int]:
    """Random tokens, without the one that ends a text."""
    return [rng.randrange(1, VOCAB_SIZE) for _ in range(length)]


def prompts_of(*lengths: int) -> list[list[int]]:
    return [random_prompt(random.Random(length), length) for length in lengths]


class FakeTokenizer:
    """One token a character, from "1" on."""

    eos_token_ids: tuple[int, ...] = (EOS,)
    has_chat_template = False

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) - ord("0") for character in text if character != " "]

    def detokenizer(self, skip_special_tokens: bool = True) -> IncrementalDetokenizer:
        return IncrementalDetokenizer(text_of)


IMAGE, IMAGE_TOKENS = VOCAB_SIZE - 2, 16


@dataclass(frozen=True)
class FakeImage:
    pixel_values: npt.NDArray[Any]
    image_hash: bytes


class FakeImageProcessor:
    """Processes images that are numbers: the number, repeated, is the hash, and there are no pixels."""

    placeholder, image_token_id, num_image_tokens = "~", IMAGE, IMAGE_TOKENS
    image_token, eoi_token = chr(ord("0") + IMAGE), ""

    def process(self, image: Any) -> FakeImage:
        return FakeImage(np.zeros(1), bytes([image] * 32))

    def expand_placeholders(self, text: str) -> str:
        return text.replace(self.placeholder, self.image_token * self.num_image_tokens)


@dataclass(frozen=True)
class Row:
    """One request's part of a step: `count` tokens from position `start`."""

    request_id: str
    start: int
    count: int


@dataclass(frozen=True)
class FakeInputs:
    contexts: Sequence[TextContext]
    kv: dict[str, tuple[Any, ...]]
    return_n_logits: int


@dataclass
class FakeModel(PipelineModel):
    """steps: the rows of each. failures: errors that the next steps raise in place of an answer, half done.

    nan_after: a token after which no next one is likeliest. broken_after: one whose row fails the step that it is in.
    during_step: called in the middle of each.
    """

    num_pages: dict[str, int]
    steps: list[list[Row]] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    nan_after: int | None = None
    broken_after: int | None = None
    during_step: Callable[[], None] = lambda: None
    compiled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = {name: np.zeros((count, PAGE), np.uint64) for name, count in self.num_pages.items()}

    graph_names = ("decoder", "decoder_for_images")

    @classmethod
    def trace(cls, pipeline_config: Any, huggingface_config: Any, weights: Any) -> dict[str, TracedGraph]:
        raise NotImplementedError

    def required_graphs(self, context: TextContext) -> Sequence[str]:
        return self.graph_names if context.images else self.graph_names[:1]

    def compile(self, names: Iterable[str]) -> None:
        self.compiled += [name for name in names if name not in self.compiled]

    def load_model(self, session: InferenceSession) -> Model:
        raise NotImplementedError

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[TextContext]],
        kv_cache_inputs: dict[str, tuple[Any, ...]] | None = None,
        return_n_logits: int = 1,
    ) -> ModelInputs:
        (contexts,) = replica_batches
        assert contexts and kv_cache_inputs
        return FakeInputs(list(contexts), kv_cache_inputs, return_n_logits)  # type: ignore[return-value]

    def prepare_next_token_inputs(self, next_tokens: Buffer, prev_model_inputs: ModelInputs) -> ModelInputs:
        raise NotImplementedError

    @classmethod
    def get_num_layers(cls, huggingface_config: Any) -> int:
        raise NotImplementedError

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        inputs: FakeInputs = model_inputs  # type: ignore[assignment]
        assert len({context.request_id for context in inputs.contexts}) == len(inputs.contexts)
        num_new = [context.num_scheduled_tokens for context in inputs.contexts]
        assert len({context.next_image is None for context in inputs.contexts}) == 1, "text and images in one step"
        rows = [self._compute(row, context, inputs.kv) for row, context in enumerate(inputs.contexts)]
        self.during_step()
        if self.failures:
            raise self.failures.pop(0)
        if any(context.scheduled_tokens[-1] == self.broken_after for context in inputs.contexts):
            raise RuntimeError("a row can't be computed")
        self.steps.append([Row(c.request_id, c.num_computed_tokens, c.num_scheduled_tokens) for c in inputs.contexts])
        return self._outputs(inputs, rows, num_new)

    def _outputs(self, inputs: FakeInputs, rows: list[npt.NDArray[np.uint64]], num_new: list[int]) -> ModelOutputs:
        count = inputs.return_n_logits
        wanted = [np.maximum(np.arange(new - count, new), 0) for new in num_new]
        logits_MV = np.concatenate([logits_of(row[positions]) for row, positions in zip(rows, wanted, strict=True)])
        for row, context in enumerate(inputs.contexts):
            if context.scheduled_tokens[-1] == self.nan_after:
                logits_MV[(row + 1) * count - 1] = np.nan
        largest_M = np.where(np.isnan(logits_MV), np.inf, logits_MV).max(axis=1)
        return ModelOutputs(
            logits=Buffer.from_numpy(logits_MV),
            next_token_logits=Buffer.from_numpy(logits_MV[count - 1 :: count].copy()),
            logit_offsets=Buffer.from_numpy(np.arange(len(rows) + 1) * count),
            greedy_tokens=Buffer.from_numpy(logits_MV.argmax(axis=1)),
            max_logits=Buffer.from_numpy(largest_M),
        )

    def _compute(self, row: int, context: TextContext, kv: dict[str, tuple[Any, ...]]) -> npt.NDArray[np.uint64]:
        """Checks that the row's pages hold what was computed before, writes the chunk there: its fingerprints."""
        done, new = context.num_computed_tokens, context.num_scheduled_tokens
        assert len(context.scheduled_tokens) == new > 0
        known = fingerprints(context.tokens[:done])
        for name, (inputs,) in kv.items():
            num_kept = int(inputs.cache_lengths.to_numpy()[row])
            slots = np.arange(num_kept + new)
            pages = inputs.lookup_table.to_numpy()[row, slots // PAGE]
            num_seen = done if name == "full" else min(done, WINDOW - 1)
            seen = slots[num_kept - num_seen : num_kept]
            assert len(seen) == num_seen, "a page was dropped too early, or a position is wrong"
            read = self.memory[name][pages[seen], seen % PAGE]
            assert np.array_equal(read, known[done - num_seen :]), "the cache holds something else"
            if name == "full":
                assert num_kept == done
                before = read[-1] if done else np.uint64(0)
        chunk = np.zeros(done, np.uint64), np.array(context.scheduled_tokens, np.uint64) + np.uint64(1)
        powers = np.multiply.accumulate(np.full(done + new, 6364136223846793005, np.uint64))
        prints = before + np.cumsum(np.concatenate(chunk) * powers)[done:]
        for name, (inputs,) in kv.items():
            slots = np.arange(new) + int(inputs.cache_lengths.to_numpy()[row])
            self.memory[name][inputs.lookup_table.to_numpy()[row, slots // PAGE], slots % PAGE] = prints
        return prints


def new_pipeline(num_pages: dict[str, int] | None = None, **settings: Any) -> TextGenerationPipeline:
    """settings: of PipelineConfig."""
    num_pages = num_pages or UNLIMITED
    config = PipelineConfig(**{"max_length": 1000, "max_batch_size": 8, **settings})
    assert config.max_length is not None
    prompts = PromptEncoder(FakeTokenizer(), VOCAB_SIZE, config.max_length, False, FakeImageProcessor)  # type: ignore[arg-type]
    cache = new_cache(**num_pages, window=WINDOW, caching=config.enable_prefix_caching)
    return TextGenerationPipeline(config, FakeModel(num_pages), cache, prompts)  # type: ignore[arg-type]


def steps_of(pipe: TextGenerationPipeline) -> list[list[Row]]:
    """The steps that the pipeline's model ran."""
    assert isinstance(pipe.model, FakeModel)
    return pipe.model.steps


def assert_idle(pipe: TextGenerationPipeline) -> None:
    """No request, no page in use, and the books are right."""
    pipe.cache.check()
    assert not pipe.engine.has_work
    assert pipe.cache.num_requests == 0 and pipe.cache.usage == 0
