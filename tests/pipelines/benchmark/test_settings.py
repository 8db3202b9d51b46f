"""Settings that make no sense are refused, in one line that names the option."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.benchmark.settings import BenchmarkSettings, TokenRange
from pipelines.errors import InputError


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://localhost:8000/", "http://localhost:8000"),
        ("http://localhost:8000/v1", "http://localhost:8000"),
        ("https://example.org/models/v1/", "https://example.org/models"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_addresses_with_and_without_v1(url: str, root: str) -> None:
    assert BenchmarkSettings(url).root_url == root


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://host:99999",
        "http://a b",
        "http://h/?q",
        "http://u:p@h",
        "ü",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InputError, match=r"--url is '.*': write an address such as http://localhost:8000"):
        BenchmarkSettings(url)


@pytest.mark.parametrize(("text", "expected"), [("7", (7, 7)), ("1:1", (1, 1)), ("128:512", (128, 512))])
def test_ranges(text: str, expected: tuple[int, int]) -> None:
    assert TokenRange.parse("--output-tokens", text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "5:4", "0:4", "1:2:3", ":4", "4:", "1.5", "٣", "9" * 10])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(InputError, match=r"--output-tokens is '.*': write a number of tokens from 1, or LOW:HIGH"):
        TokenRange.parse("--output-tokens", text)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_requests": 0}, "--num-requests is 0"),
        ({"concurrency": 0}, "--concurrency is 0"),
        ({"shared_prefix_tokens": -1}, "--shared-prefix-tokens is -1"),
        ({"seed": -1}, "--seed is -1"),
        ({"num_warmup": -1}, "--warmup is -1"),
        ({"timeout_s": 0.0}, "--timeout is 0.0"),
        ({"timeout_s": float("nan")}, "--timeout is nan"),
        ({"request_rate": 0.0}, "--request-rate is 0.0"),
        ({"request_rate": float("nan")}, "--request-rate is nan"),
        ({"endpoint": "embeddings"}, "--endpoint is 'embeddings'"),
        ({"api_key": ""}, "--api-key"),
        ({"api_key": "ü"}, "--api-key"),
        ({"prompts_file": "x", "shared_prefix_tokens": 5}, "--shared-prefix-tokens is for random prompts"),
    ],
)
def test_values_out_of_range(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        BenchmarkSettings("http://localhost", **fields)


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(BenchmarkSettings("http://localhost", api_key="secret"))
