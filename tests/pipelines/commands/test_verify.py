"""`pipelines verify`: what it measures, what it prints, and what it needs."""

from __future__ import annotations

import shutil
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from command import Caller
from loader import Loader
from reference import Reference, random_tokens
from tiny_models import TINY_MODELS, update_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from pipelines.commands import verify as verify_module
from pipelines.commands import verify_reference
from pipelines.commands.verify import Comparison, Distance, compare
from pipelines.commands.verify_reference import InFloat64, load_reference
from pipelines.config import PipelineConfig
from pipelines.load import PreparedPipeline, prepare_pipeline
from pipelines.loading.blocks import FORMATS, BlockFormat
from pipelines.loading.checkpoint import resolve_config

Logits = npt.NDArray[np.float32]

MODELS = [*(name for name in TINY_MODELS if name != "qwen3_fp8"), "gemma3_multimodal"]  # float8 needs accelerate


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    return Caller(capsys, monkeypatch)


@pytest.fixture(scope="module")
def compiled(load: Loader) -> None:
    load("demo")


class FakePipeline:
    """A pipeline whose graph is transformers' float32 model, or something worse."""

    def __init__(self, reference: Reference, change: Callable[[Logits], Logits] = lambda logits: logits) -> None:
        self.reference, self.change = reference, change

    def __enter__(self) -> FakePipeline:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def logit_slabs(self, tokens: Sequence[int]) -> Iterator[tuple[int, Logits]]:
        """All slabs are one buffer."""
        logits = self.change(self.reference.logits(list(tokens)))
        slab = np.empty((100, logits.shape[1]), np.float32)
        for start in range(0, len(logits), len(slab)):
            num_rows = min(len(slab), len(logits) - start)
            slab[:num_rows] = logits[start : start + num_rows]
            yield start, slab[:num_rows]
        slab[:] = np.nan

    def generate(self, prompts: Sequence[Sequence[int]], params: Any) -> list[Any]:
        assert (params.temperature, params.repetition_penalty) == (0.0, 1.0), "the checkpoint may have other defaults"
        assert params.ignore_eos
        return [
            SimpleNamespace(tokens=self.reference.greedy(list(prompt), params.max_new_tokens)) for prompt in prompts
        ]


Play = Callable[[FakePipeline], None]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Puts a fake in the place of the pipeline that would be compiled."""
    return lambda fake: monkeypatch.setattr(PreparedPipeline, "load", lambda self: fake)


def test_a_comparison_finds_the_worst_place_and_what_it_costs() -> None:
    theirs = np.array([[0, 1, 4], [2, 0, 1], [0, 3, 1]], np.float32)
    ours = theirs.copy()
    ours[1] = [1, 0, 1.5]
    for borders in [(0, 3), (0, 1, 3), (0, 1, 2, 3)]:
        result = _distances(ours, theirs, borders)
        assert result.max_difference == 1 / 4
        assert result.mean_difference == pytest.approx(1.5 / 9 / 4)
        assert result.top1_agreement == pytest.approx(2 / 3)
        assert result.worst_position == 1
        assert result.num_same_greedy == 7
        p, q = (np.exp(row) / np.exp(row).sum() for row in (theirs[1], ours[1]))
        assert result.kl == pytest.approx((p * np.log(p / q)).sum() / 3, rel=1e-5)


def test_equal_logits_are_equal_in_every_column() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32) * 50
    result = _distances(logits, logits, (0, 4))
    assert (result.max_difference, result.mean_difference, result.top1_agreement) == (0, 0, 1)
    assert result.kl == pytest.approx(0, abs=1e-12)


def test_the_sums_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    theirs = rng.standard_normal((50, 40)).astype(np.float32)
    ours = theirs + rng.standard_normal((50, 40)).astype(np.float32) * 1e-3
    whole = _distances(ours, theirs, (0, 50))
    monkeypatch.setattr(verify_module, "BLOCK_BYTES", 3 * 40 * 8)
    parts = _distances(ours, theirs, (0, 7, 20, 50))
    for field, value in vars(whole).items():
        assert getattr(parts, field) == pytest.approx(value, rel=1e-12), field


def test_logits_that_are_no_numbers_are_the_worst() -> None:
    theirs = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    ours = theirs.copy()
    ours[2, 3] = np.nan
    ours[5] += 1
    result = _distances(ours, theirs, (0, 1, 4, 6))
    assert np.isnan(result.max_difference)
    assert result.worst_position == 2
    comparison = Comparison(6, 0, ours=result, float32=_distances(theirs, theirs, (0, 6)))
    assert not comparison.is_within(1e9)
    assert not comparison.is_as_float32


@pytest.mark.parametrize("positions", [(0, 2), (1, 0), (0, 0)])
def test_slabs_that_leave_positions_out_are_an_error(positions: tuple[int, ...]) -> None:
    logits = np.zeros((1, 5), np.float32)
    with pytest.raises(ValueError, match="where those of"):
        compare([(position, logits) for position in positions], lambda start, end: (logits, logits.astype(np.float64)))


def test_memory_does_not_grow_with_positions_times_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    num_positions, vocab_size = 400, 50_000
    monkeypatch.setattr(verify_module, "BLOCK_BYTES", 4 * 2**20)
    row = np.random.default_rng(0).standard_normal((1, vocab_size)).astype(np.float32)

    def theirs(start: int, end: int) -> tuple[Logits, npt.NDArray[np.float64]]:
        return row.repeat(end - start, 0), row.repeat(end - start, 0).astype(np.float64)

    tracemalloc.start()
    compare(((start, row.repeat(20, 0)) for start in range(0, num_positions, 20)), theirs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < num_positions * vocab_size * 4 / 2, f"{peak / 2**20:.0f} MiB"


@pytest.mark.parametrize("max_ratio, mean_ratio, expected", [(2.9, 2.9, True), (3.1, 1, False), (1, 3.1, False)])
def test_a_graph_may_be_as_far_off_as_float32_in_the_largest_and_in_the_mean(
    max_ratio: float, mean_ratio: float, expected: bool
) -> None:
    float32 = Distance(1e-2, 1e-4, 1.0, 0.0, 0, 0)
    ours = Distance(1e-2 * max_ratio, 1e-4 * mean_ratio, 1.0, 0.0, 0, 0)
    assert Comparison(1, 0, ours, float32).is_as_float32 is expected


def prepared(checkpoint: Path, **settings: Any) -> PreparedPipeline:
    return prepare_pipeline(PipelineConfig(str(checkpoint), **settings))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_the_model_in_float64_and_in_float32(
    name: str, checkpoints: Mapping[str, Path], references: Mapping[str, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one pass with eager attention, or in chunks with whatever attention transformers chooses."""
    monkeypatch.setattr(verify_reference, "CHUNK_TOKENS", 100)
    prompt = random_tokens(300, references[name].vocab_size)
    reference = load_reference(prepared(checkpoints[name]))
    with NarrowingSpy() as spy:
        run = reference.run(prompt, 8)
        logits32, logits64 = reference.into_head().logits(run, 0, len(prompt))
    assert not spy.narrowed
    assert (logits32.dtype, logits64.dtype) == (np.dtype(np.float32), np.dtype(np.float64))
    exact = _exact_logits(checkpoints[name], prompt)
    assert _relative(logits64, exact) < 1e-13
    assert _relative(logits32, exact) < 4e-6
    assert _relative(logits32, exact) > 1e-8
    np.testing.assert_array_equal(run.greedy, references[name].greedy(prompt, 8)[: len(run.greedy)])
    assert run.num_same_float32 == len(run.greedy) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma4", "qwen3_moe", "gemma3_multimodal"])
def test_only_the_head_is_kept_and_only_last_logits_are_computed(name: str, checkpoints: Mapping[str, Path]) -> None:
    reference = load_reference(prepared(checkpoints[name]))
    vocab_size, hidden_size = reference._head.model.lm_head.weight.shape
    with NarrowingSpy() as spy:
        run = reference.run(random_tokens(200, vocab_size), 4)
    assert max(shape[-2] for shape in spy.shapes if len(shape) > 1 and shape[-1] == vocab_size) <= 5
    layers = weakref.ref(reference._layers)
    head = reference.into_head()
    assert layers() is None
    for part, dtype in ((head._head32, torch.float32), (head._head64, torch.float64)):
        parameters = dict(part.model.named_parameters())
        assert {name: (tuple(p.shape), p.dtype) for name, p in parameters.items()} == {
            "lm_head.weight": ((vocab_size, hidden_size), dtype)
        }
    assert run.states32.shape == run.states64.shape == (200, hidden_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "gemma4", "qwen3"])
def test_the_reference_of_a_run_in_blocks_has_its_weights(
    name: str, checkpoints: Mapping[str, Path], references: Mapping[str, Reference]
) -> None:
    """Matrices and the head quantized and dequantized, all else as it is."""
    run = prepared(checkpoints[name], quantization_encoding="q4_0")
    model = load_reference(run)._head.model
    exact = references[name].model.state_dict()

    def rounded(name: str, block_format: BlockFormat) -> npt.NDArray[np.float32]:
        blocks = gguf.quants.quantize(exact[name].numpy(), block_format.ggml_type)
        return block_format.dequantize(blocks)

    layers = load_reference(run)._layers.state_dict()
    for part, block_format in (("self_attn.q_proj", FORMATS["q4_0"]), ("mlp.down_proj", FORMATS["q4_0"])):
        found = layers[f"layers.1.{part}.weight"].numpy()
        assert np.array_equal(found, rounded(f"model.layers.1.{part}.weight", block_format)), part
    assert np.array_equal(model.lm_head.weight.detach().numpy(), rounded("lm_head.weight", FORMATS["q8_0"]))
    assert torch.equal(layers["norm.weight"], exact["model.norm.weight"])


def test_greedy_tokens_end_where_float32_chooses_another_than_float64(
    checkpoints: Mapping[str, Path], references: Mapping[str, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = random_tokens(20, 1000)
    greedy = references["qwen3"].greedy(prompt, 8)
    reference = load_reference(prepared(checkpoints["qwen3"]))
    states, _ = reference._generate(prompt, 0)
    wrong = [*greedy[:3], greedy[3] ^ 1, *greedy[4:]]
    monkeypatch.setattr(reference, "_generate", lambda prompt, num_new: (states, wrong))
    run = reference.run(prompt, 8)
    assert run.greedy == greedy[:4]
    assert run.num_same_float32 == 3


@pytest.mark.slow
def test_a_graph_that_differs_by_roundings_is_equal(
    call: Caller, play: Play, checkpoints: Mapping[str, Path], references: Mapping[str, Reference]
) -> None:
    play(FakePipeline(references["gemma3"]))
    result = call("verify", "--model", str(checkpoints["gemma3"]), "--length", "700", "--prompt", "w20 w30 w40")
    assert result.code == 0
    ours, float32 = _rows(result.out, "ours"), _rows(result.out, "float32")
    assert len(ours) == 2
    assert ours[1][0] == "700"
    assert all(row[-1] == "equal" and "32/32" in row and "100.00%" in row for row in ours)
    assert len(float32) == 2
    assert all("32/32" in row for row in float32)
    assert result.out.splitlines()[-1].startswith("equal to transformers in float64: logits within 0.0001 of the")


@pytest.mark.slow
def test_by_default_prompts_cross_the_window(
    call: Caller, play: Play, checkpoints: Mapping[str, Path], references: Mapping[str, Reference]
) -> None:
    play(FakePipeline(references["gemma3"]))
    result = call("verify", "--model", str(checkpoints["gemma3"]))
    assert [row[0] for row in _rows(result.out, "ours")] == ["1", "255", "256", "257", "768"]


@pytest.mark.slow
def test_a_hard_checkpoint_is_told_from_a_wrong_graph(
    call: Caller, play: Play, checkpoints: Mapping[str, Path], references: Mapping[str, Reference]
) -> None:
    """A tolerance that float32 itself misses makes any checkpoint a hard one."""
    command = ("verify", "--model", str(checkpoints["qwen3"]), "--length", "200", "--tolerance", "1e-12")
    play(FakePipeline(references["qwen3"]))
    result = call(*command)
    assert result.code == 0
    assert result.out.count("as float32") == 1
    wave: Logits = np.float32(1e-4) * np.cos(np.arange(1000, dtype=np.float32))
    play(FakePipeline(references["qwen3"], lambda logits: logits + wave))
    result = call(*command)
    assert result.code == 1
    assert result.out.count("NOT equal") == 2
    assert result.out.splitlines()[-1].startswith("NOT equal to transformers in float64")


@pytest.mark.slow
def test_a_wrong_frequency_of_rope_is_not_equal(
    call: Caller, play: Play, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    """A base period that is a ten-thousandth off."""
    shutil.copytree(checkpoints["qwen3"], tmp_path, dirs_exist_ok=True)
    update_config(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 10_001.0})
    play(FakePipeline(Reference(tmp_path)))
    result = call("verify", "--model", str(checkpoints["qwen3"]), "--length", "1500")
    assert result.code == 1
    assert [row[-2:] for row in _rows(result.out, "ours")] == [["NOT", "equal"]]


@pytest.mark.parametrize("length", ["8193", "0", "-1"])
def test_a_length_out_of_range_is_refused_before_anything_runs(
    length: str, call: Caller, checkpoints: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_reference, "load_reference", lambda checkpoint: pytest.fail("was loaded"))
    message = call("verify", "--model", str(checkpoints["qwen3"]), "--length", "5", "--length", length).error()
    assert f"--length {length} is out of range: a prompt has 1 to 8192 tokens" in message


@pytest.mark.slow
def test_a_prompt_may_be_as_long_as_the_run_allows(
    call: Caller, play: Play, checkpoints: Mapping[str, Path], references: Mapping[str, Reference]
) -> None:
    play(FakePipeline(references["qwen3"]))
    command = ("verify", "--model", str(checkpoints["qwen3"]), "--max-length", "300")
    result = call(*command, "--length", "300", "--length", "292")
    assert result.code == 0
    full, nearly = _rows(result.out, "ours")
    assert "0/0" in full
    assert "8/8" in nearly


def test_random_prompts_leave_out_tokens_that_stand_for_something_else(checkpoints: Mapping[str, Path]) -> None:
    checkpoint = resolve_config(str(checkpoints["gemma3_multimodal"]))
    tokens = verify_module._ordinary_tokens(checkpoint, 1000).tolist()
    assert sorted(set(range(1000)) - set(tokens)) == [0, 1, 2, 990, 991, 992]


@pytest.mark.usefixtures("compiled")
def test_the_demo_is_equal_to_transformers(call: Caller) -> None:
    result = call("verify")
    assert result.code == 0
    rows = _rows(result.out, "ours")
    assert [row[0] for row in rows] == ["1", "127", "128", "129", "384"]
    assert all(row[4] == "100.00%" and row[7] == "32/32" and row[8] == "equal" for row in rows)
    assert result.out.splitlines()[-1].startswith("equal to transformers in float64")


def test_without_torch_it_says_what_to_install(call: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install torch" in call("verify", "--model", str(tmp_path)).error()


class NarrowingSpy(TorchDispatchMode):
    """Operations that make float32 numbers of float64 ones, and the shapes of all results."""

    def __init__(self) -> None:
        super().__init__()
        self.narrowed: set[str] = set()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        took, gave = ([leaf for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor)] for x in (args, result))
        if any(x.dtype == torch.float64 for x in took) and any(x.dtype == torch.float32 for x in gave):
            self.narrowed.add(str(func))
        self.shapes |= {tuple(x.shape) for x in gave if x.is_floating_point()}
        return result


def _distances(ours: Logits, theirs: Logits, borders: Sequence[int]) -> Distance:
    slabs = ((start, ours[start:end]) for start, end in pairwise(borders))
    sums, float32 = compare(slabs, lambda start, end: (theirs[start:end], theirs[start:end].astype(np.float64)))
    assert float32.distance(0).max_difference == 0
    return sums.distance(num_same_greedy=7)


def _rows(out: str, label: str) -> list[list[str]]:
    """The cells of the table's rows with this label."""
    return [line.split() for line in out.splitlines() if f" {label} " in line and "/" in line]


@torch.inference_mode()
def _exact_logits(folder: Path, prompt: list[int]) -> npt.NDArray[np.float64]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    with InFloat64():
        return model.eval()(torch.tensor([prompt])).logits[0].numpy()


def _relative(ours: npt.NDArray[Any], exact: npt.NDArray[np.float64]) -> float:
    return float(np.abs(ours - exact).max() / np.abs(exact).max())
