"""The tests that settings ask for, and settings that make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.benchmark.local_settings import LocalSettings, LocalTest
from pipelines.errors import InputError


def test_each_length_at_each_depth_with_each_batch_size() -> None:
    settings = LocalSettings((512,), (32,), depths=(0, 8192), batch_sizes=(1, 8))
    assert list(settings.tests()) == [
        LocalTest("prompt", 512, 0, 1),
        LocalTest("generate", 32, 0, 1),
        LocalTest("prompt", 512, 0, 8),
        LocalTest("generate", 32, 0, 8),
        LocalTest("prompt", 512, 8192, 1),
        LocalTest("generate", 32, 8192, 1),
        LocalTest("prompt", 512, 8192, 8),
        LocalTest("generate", 32, 8192, 8),
    ]
    assert (settings.max_length, settings.max_batch_size) == (8704, 8)


def test_a_length_of_0_leaves_its_kind_out_and_nothing_is_measured_twice() -> None:
    settings = LocalSettings((0,), (16, 4, 16), depths=(3, 3))
    assert [test.name for test in settings.tests()] == ["tg16", "tg4"]
    assert [test.name for test in LocalSettings((7,), (0,)).tests()] == ["pp7"]
    assert settings.max_length == 19


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt_lengths": (5, -1)}, "--prompt-length is -1"),
        ({"generate_lengths": (2**24 + 1,)}, "--generate-length is 16777217"),
        ({"depths": (-1,)}, "--depth is -1"),
        ({"batch_sizes": (0,)}, "--batch-size is 0"),
        ({"repetitions": 0}, "--repetitions is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"prompt_lengths": (0,), "generate_lengths": (0,)}, "nothing to measure"),
    ],
)
def test_values_out_of_range(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        LocalSettings(**fields)
