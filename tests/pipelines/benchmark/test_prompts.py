"""Prompts of as many tokens as were asked for, whatever the tokenizer; prompts of files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.benchmark.prompts import (
    OPENER,
    UNCALIBRATED,
    WORDS,
    Calibration,
    calibrate,
    random_prompts,
    read_prompts,
    take,
)
from pipelines.benchmark.settings import BenchmarkSettings, TokenRange
from pipelines.errors import InputError

LONG_WORDS = {"number", "return", "value", "string"}


def words(text: str) -> int:
    """A token a word, and two around the text."""
    return 2 + len(text.split())


def long_words_are_two(text: str) -> int:
    return words(text) + sum(word in LONG_WORDS for word in text.split())


def characters(text: str) -> int:
    return len(text.replace(" ", ""))


def calibrated(tokenizer: Callable[[str], int]) -> tuple[Calibration, int]:
    """The calibration, and the number of questions that it took."""
    texts = []

    async def count(text: str) -> int | None:
        texts.append(text)
        return tokenizer(text)

    calibration = asyncio.run(calibrate(count))
    assert calibration is not None
    return calibration, len(texts)


def settings(**fields: Any) -> BenchmarkSettings:
    return BenchmarkSettings(url="http://localhost:1", **{"seed": 1, **fields})


def test_two_questions_suffice_if_each_word_is_a_token() -> None:
    calibration, num_questions = calibrated(words)
    assert calibration == Calibration(3, dict.fromkeys(WORDS, 1))
    assert num_questions == 2


def test_words_of_several_tokens_are_found_and_left_out() -> None:
    calibration, num_questions = calibrated(long_words_are_two)
    assert set(calibration.costs) == set(WORDS) - LONG_WORDS
    assert num_questions < len(WORDS)


def test_a_server_that_does_not_tell() -> None:
    async def none(_: str) -> None:
        return None

    async def once(text: str) -> int | None:
        return 3 if text == OPENER else None

    assert asyncio.run(calibrate(none)) is None
    assert asyncio.run(calibrate(once)) is None


@pytest.mark.parametrize("tokenizer", [words, long_words_are_two, characters])
@pytest.mark.parametrize("num_prefix_tokens", [0, 50])
def test_prompts_have_as_many_tokens_as_were_asked_for(tokenizer: Callable[[str], int], num_prefix_tokens: int) -> None:
    run = settings(prompt_tokens=TokenRange(20, 90), shared_prefix_tokens=num_prefix_tokens)
    prompts = random_prompts(run, calibrated(tokenizer)[0], 200)
    counts = [tokenizer(prompt.text) for prompt in prompts]
    assert counts == [prompt.num_tokens for prompt in prompts]
    assert min(counts) == 20 + num_prefix_tokens and max(counts) == 90 + num_prefix_tokens


def test_prompts_differ_but_for_the_shared_prefix() -> None:
    def shared(first: str, second: str) -> int:
        pairs = zip(first.split(), second.split(), strict=True)
        return next(i for i, (one, other) in enumerate(pairs) if one != other)

    calibration = calibrated(words)[0]
    plain = [prompt.text for prompt in random_prompts(settings(), calibration, 50)]
    assert len(set(plain)) == 50
    assert max(shared(plain[i], plain[i + 1]) for i in range(49)) < 8
    prefixed = [p.text for p in random_prompts(settings(shared_prefix_tokens=100), calibration, 50)]
    assert 101 <= min(shared(prefixed[i], prefixed[i + 1]) for i in range(49)) < 104


def test_prompts_are_those_of_the_seed() -> None:
    first, again, other = (random_prompts(settings(seed=seed), UNCALIBRATED, 5) for seed in (3, 3, 4))
    assert first == again != other


def test_a_prompt_shorter_than_what_the_server_adds() -> None:
    with pytest.raises(InputError, match=r"--prompt-tokens is 3: the server adds 3 tokens"):
        random_prompts(settings(prompt_tokens=TokenRange(3, 9)), calibrated(words)[0], 1)


def test_a_file_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes('\ufeffone two\r\n\n  "three"\u2028\n'.encode())
    assert [prompt.text for prompt in read_prompts(path)] == ["one two", '  "three"\u2028']


def test_a_file_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('"one\\ntwo"\n\n{"prompt": "three", "output_tokens": 5, "more": 1}\n{"prompt": "four"}\n')
    assert [(p.text, p.max_tokens) for p in read_prompts(path)] == [("one\ntwo", None), ("three", 5), ("four", None)]


@pytest.mark.parametrize(
    "line", ["{", "[]", "7", "null", "{}", '{"prompt": 7}', '{"prompt": ""}', '{"prompt": "x", "output_tokens": 0}']
)
def test_a_line_that_is_no_prompt(line: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'"fine"\n{line}\n')
    with pytest.raises(InputError, match="line 2"):
        read_prompts(path)


def test_a_file_that_can_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n\n")
    (tmp_path / "binary").write_bytes(b"ab\xff")
    for name, reason in (("none", "No such file"), ("empty", "no prompts"), ("binary", "not UTF-8 .byte 2")):
        with pytest.raises(InputError, match=reason):
            read_prompts(tmp_path / name)


def test_prompts_of_a_file_repeat() -> None:
    prompts = random_prompts(settings(), UNCALIBRATED, 3)
    assert take(prompts, 7) == [*prompts, *prompts, prompts[0]]
    assert take(prompts, 2) == prompts[:2]
