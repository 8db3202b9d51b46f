"""Small chat models: the tokens and the published template of a family around a model that babbles, or writes a script.

A tokenizer is byte-level BPE of some hundred tokens with the family's control tokens, or the published one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fake_model import FakeInputs, FakeModel
from kv_caches import new_cache
from max.driver import Buffer
from published import FOLDERS
from structured import CORPUS, PUBLISHED_FOLDER, Vocabulary, vocabulary_of
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines import PipelineConfig
from pipelines.pipeline_model import ModelOutputs
from pipelines.text.prompts import PromptEncoder
from pipelines.text_generation import TextGenerationPipeline

# As Llama's own does it, for tests: a header a message, tools in the user's, calls and results in JSON.
_LLAMA3 = """{{- bos_token }}
{%- macro header(role) %}{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{% endmacro %}
{%- for message in messages %}
{{- header('ipython' if message.role == 'tool' else message.role) }}
{%- if tools and loop.index0 == 0 %}
{{- 'Respond with JSON for a function call. {"name": function name, "parameters": dictionary}.\\n\\n' }}
{%- for tool in tools %}{{- tool | tojson + '\\n\\n' }}{% endfor %}
{%- endif %}
{%- if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('only single tool-calls at once') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
{%- elif message.role == 'tool' %}{{- message.content | tojson }}
{%- else %}{{- message.content }}
{%- endif %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- header('assistant') }}{% endif %}{#- <|python_tag|> #}"""


@dataclass(frozen=True)
class Family:
    """The tokens of a family.

    published: the folder of its tokenizer. folder: of its template. special: control tokens, the first of which begins
    a text. ordinary: other added tokens. eos: those that end a text. names: of special tokens.
    """

    published: str
    folder: str
    special: tuple[str, ...]
    eos: tuple[str, ...]
    ordinary: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()

    @property
    def template(self) -> str:
        return (FOLDERS[self.folder] / "chat_template.jinja").read_text() if self.folder else _LLAMA3


_LLAMA3_HEADER = ("<|start_header_id|>", "<|end_header_id|>")
_THINK, _CALL, _RESULT = (
    ("<think>", "</think>"),
    ("<tool_call>", "</tool_call>"),
    ("<tool_response>", "</tool_response>"),
)
_GEMMA4_NAMES = (
    ("stc_token", "<|tool_call>"),
    ("etc_token", "<tool_call|>"),
    ("std_token", "<|tool>"),
    ("etd_token", "<tool|>"),
    ("str_token", "<|tool_response>"),
    ("etr_token", "<tool_response|>"),
    ("escape_token", '<|"|>'),
    ("think_token", "<|think|>"),
    ("soc_token", "<|channel>"),
    ("eoc_token", "<channel|>"),
    ("sot_token", "<|turn>"),
    ("eot_token", "<turn|>"),
)
FAMILIES = {
    "qwen3": Family(
        "qwen2",
        "Qwen__Qwen3-0.6B",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        ("<|im_end|>", "<|endoftext|>"),
        (*_THINK, *_CALL, *_RESULT),
    ),
    "gemma4": Family(
        "gemma-4",
        "google__gemma-4-E2B-it",
        ("<bos>", "<eos>", *(token for _, token in _GEMMA4_NAMES)),
        ("<eos>", "<turn|>", "<|tool_response>"),
        names=_GEMMA4_NAMES,
    ),
    "gemma3": Family(
        "",
        "google__gemma-3-4b-it",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        ("<eos>", "<end_of_turn>"),
    ),
    "llama3": Family(
        "llama-bpe",
        "",
        ("<|begin_of_text|>", "<|end_of_text|>", *_LLAMA3_HEADER, "<|eot_id|>", "<|python_tag|>"),
        ("<|end_of_text|>", "<|eot_id|>"),
    ),
}
FAMILIES["gemma4-31b"] = Family(**{**FAMILIES["gemma4"].__dict__, "folder": "google__gemma-4-31B-it"})
FAMILIES["qwen3-instruct"] = Family(**{**FAMILIES["qwen3"].__dict__, "folder": "Qwen__Qwen3-4B-Instruct-2507"})
PUBLISHED = [name for name, family in FAMILIES.items() if family.published]


@functools.cache
def chat_vocabulary(name: str, is_published: bool = False) -> Vocabulary:
    """The tokenizer of a family, with its chat template."""
    family = FAMILIES[name]
    hf = _published(family) if is_published else _small(family)
    hf.chat_template = family.template
    return vocabulary_of(hf, hf.convert_tokens_to_ids(list(family.eos)))


def _small(family: Family) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _with_added(
        PreTrainedTokenizerFast(
            tokenizer_object=_with_specials(tokenizer, family),
            bos_token=family.special[0],
            eos_token=family.eos[0],
            extra_special_tokens=dict(family.names),
        ),
        family,
    )


def _with_specials(tokenizer: Tokenizer, family: Family) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in family.special])
    return tokenizer


def _with_added(hf: Any, family: Family) -> Any:
    hf.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.ordinary])
    return hf


def _published(family: Family) -> Any:
    """The published one; the markers that the vocabulary files have as unused entries get their names."""
    assert PUBLISHED_FOLDER is not None
    folder = Path(PUBLISHED_FOLDER) / family.published
    return _with_added(AutoTokenizer.from_pretrained(folder, extra_special_tokens=dict(family.names)), family)


_LARGEST_HELP = 8
"""For tokens that close something: others may have to come before them."""


class WritingModel(FakeModel):
    """Checks the cache as the fake model does, and then writes.

    vocabulary: of its tokens. scripts: of the requests in their order, the last one for all that follow: tokens that it
    writes, and then the end of the text. None: it babbles, in the end what closes strings and objects.
    """

    def __init__(
        self, num_pages: dict[str, int], vocabulary: Vocabulary, scripts: Sequence[Sequence[int]] | None, seed: int
    ) -> None:
        super().__init__(num_pages)
        self._vocabulary, self._seed = vocabulary, seed
        self.write(scripts)

    def write(self, scripts: Sequence[Sequence[int]] | None) -> None:
        """Writes these from the next request on."""
        self.scripts, self._numbers = scripts, dict[str, int]()

    def _outputs(self, inputs: FakeInputs, rows: list[npt.NDArray[np.uint64]], num_new: list[int]) -> ModelOutputs:
        assert inputs.return_n_logits == 1 or self.scripts is None
        count = inputs.return_n_logits
        logits_MV = np.concatenate(
            [self._row(row, context, position) for row, context in zip(rows, inputs.contexts, strict=True)
             for position in np.maximum(np.arange(len(row) - count, len(row)), 0)]
        )  # fmt: skip
        return ModelOutputs(
            logits=Buffer.from_numpy(logits_MV),
            next_token_logits=Buffer.from_numpy(logits_MV[count - 1 :: count].copy()),
            logit_offsets=Buffer.from_numpy(np.arange(len(rows) + 1) * count),
            greedy_tokens=Buffer.from_numpy(logits_MV.argmax(axis=1)),
            max_logits=Buffer.from_numpy(logits_MV.max(axis=1)),
        )

    def _row(self, prints: npt.NDArray[np.uint64], context: Any, position: int) -> npt.NDArray[np.float32]:
        """[1, V]"""
        done = context.num_computed_tokens + int(position) + 1 - context.num_prompt_tokens
        if self.scripts is not None:
            script = self.scripts[min(self._number(context.request_id), len(self.scripts) - 1)]
            token = script[done] if 0 <= done < len(script) else self._vocabulary.text.eos_token_ids[0]
            return np.eye(1, self._vocabulary.vocab_size, token, dtype=np.float32) * 50
        rng = np.random.default_rng([int(prints[position]), self._seed])
        logits_V = rng.standard_normal(self._vocabulary.vocab_size, np.float32) * 2
        return (logits_V + self._vocabulary.closes_V * min(max(done, 0) / 8, _LARGEST_HELP))[None]

    def _number(self, request_id: str) -> int:
        return self._numbers.setdefault(request_id, len(self._numbers))


def writing_pipeline(
    family: str,
    scripts: Sequence[str] | None = None,
    is_published: bool = False,
    seed: int = 0,
    **settings: Any,
) -> TextGenerationPipeline:
    """A pipeline of a family. scripts: answers, as WritingModel has them. settings: of PipelineConfig."""
    vocabulary, num_pages = chat_vocabulary(family, is_published), {"full": 400, "sliding": 400}
    config = PipelineConfig(**{"max_length": 6000, "max_batch_size": 16, "max_batch_tokens": 2048, **settings})
    assert config.max_length is not None
    prompts = PromptEncoder(vocabulary.text, vocabulary.vocab_size, config.max_length, True)
    model = WritingModel(num_pages, vocabulary, None if scripts is None else [*map(vocabulary.ids, scripts)], seed)
    return TextGenerationPipeline(config, model, new_cache(400, 400, window=200), prompts)
