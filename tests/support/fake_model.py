"""A model whose logits are a fingerprint of all that the cache holds for a row, and a pipeline around it.

It reads and writes through the pages that the cache manager names, so that a token computed twice, at a wrong place or
not at all, or a page that two requests use, changes every later token of the row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from kv_caches import PAGE, new_cache
from max.driver import Buffer
from max.engine import InferenceSession, Model

from pipelines import PipelineConfig
from pipelines.context import TextContext
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
    """What the model writes after a prompt, found without cache, batch or chunks."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + num_new:
        tokens.append(int(logits_of(fingerprints(tokens)[-1:])[0].argmax()))
        if tokens[-1] == EOS and not is_eos_ignored:
            break
    return tokens[len(prompt) :]


def text_of(tokens: Sequence[int]) -> str:
    """A character a token, nothing for the end of a text."""
    half = chr(ord("0") + HALF)
    text = "".join(chr(ord("0") + token) for token in tokens if token != EOS)
    return text.replace(half * 2, "\u00e9").replace(half, "\ufffd")


def random_prompt(rng: random.Random, length: int) -> list[int]:
    """Without the token that ends a text."""
    return [rng.randrange(1, VOCAB_SIZE) for _ in range(length)]


def prompts_of(*lengths: int) -> list[list[int]]:
    return [random_prompt(random.Random(length), length) for length in lengths]


class FakeTokenizer:
    """One token a character, from "1" on."""

    eos_token_ids = (EOS,)
    has_chat_template = False

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) - ord("0") for character in text if character != " "]

    def detokenizer(self) -> IncrementalDetokenizer:
        return IncrementalDetokenizer(text_of)


@dataclass(frozen=True)
class Row:
    """What one step computed of a request: `count` tokens from position `start`."""

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

    nan_after: a token after which no next one is likeliest.
    """

    num_pages: dict[str, int]
    steps: list[list[Row]] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    nan_after: int | None = None

    def __post_init__(self) -> None:
        self.memory = {name: np.zeros((count, PAGE), np.uint64) for name, count in self.num_pages.items()}

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
        num_new = [context.num_scheduled for context in inputs.contexts]
        rows = [self._compute(row, context, inputs.kv) for row, context in enumerate(inputs.contexts)]
        if self.failures:
            raise self.failures.pop(0)
        self.steps.append([Row(c.request_id, c.num_computed, c.num_scheduled) for c in inputs.contexts])
        count = inputs.return_n_logits
        wanted = [np.maximum(np.arange(new - count, new), 0) for new in num_new]
        logits_MV = np.concatenate([logits_of(row[positions]) for row, positions in zip(rows, wanted, strict=True)])
        last_BV = logits_MV[count - 1 :: count].copy()
        for row, context in enumerate(inputs.contexts):
            if context.next_chunk[-1] == self.nan_after:
                last_BV[row] = np.nan
        return ModelOutputs(
            logits=Buffer.from_numpy(logits_MV),
            next_token_logits=Buffer.from_numpy(last_BV),
            logit_offsets=Buffer.from_numpy(np.arange(len(rows) + 1) * count),
            next_tokens=Buffer.from_numpy(last_BV.argmax(axis=1)),
        )

    def _compute(self, row: int, context: TextContext, kv: dict[str, tuple[Any, ...]]) -> npt.NDArray[np.uint64]:
        """Checks that the row's pages hold what was computed before, writes the chunk there: its fingerprints."""
        done, new = context.num_computed, context.num_scheduled
        assert len(context.next_chunk) == new > 0
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
        chunk = np.zeros(done, np.uint64), np.array(context.next_chunk, np.uint64) + np.uint64(1)
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
    prompts = PromptEncoder(FakeTokenizer(), VOCAB_SIZE, config.max_length, False)  # type: ignore[arg-type]
    cache = new_cache(**num_pages, window=WINDOW, caching=config.enable_prefix_caching)
    return TextGenerationPipeline(config, FakeModel(num_pages), cache, prompts)  # type: ignore[arg-type]


def steps_of(pipe: TextGenerationPipeline) -> list[list[Row]]:
    """The steps that the pipeline's model ran."""
    assert isinstance(pipe.model, FakeModel)
    return pipe.model.steps


def assert_idle(pipe: TextGenerationPipeline) -> None:
    """No request, no page in use, and the books are right."""
    pipe.cache.check()
    assert not pipe.engine.scheduler.has_work
    assert not pipe.cache.request_ids and pipe.cache.usage == 0
