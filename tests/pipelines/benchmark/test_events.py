"""Server-sent events, however lines end and wherever the network cuts them."""

from __future__ import annotations

import pytest

from pipelines.benchmark.events import EventParser

STREAM = (
    ": ping\n\ndata: one\n\nevent: message\nid: 7\ndata:two\n\ndata: {\ndata: }\n\nretry: 5\n\ndata: Größe 🎈\n\n"
    "data\ndata:\n\ndata:  spaces \n\ndata: [DONE]\n\n"
)
EVENTS = ["one", "two", "{\n}", "Größe 🎈", "\n", " spaces ", "[DONE]"]


def parse(*chunks: bytes) -> list[str]:
    parser = EventParser()
    return [data for chunk in chunks for data in parser.feed(chunk)] + parser.close()


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_events_whatever_the_line_ends_and_the_size_of_chunks(line_end: str, size: int) -> None:
    stream = STREAM.replace("\n", line_end).encode()
    assert parse(*(stream[i : i + size] for i in range(0, len(stream), size))) == EVENTS


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_an_event_is_there_as_soon_as_its_last_byte(line_end: str) -> None:
    parser = EventParser()
    assert parser.feed(f"data: a{line_end}".encode()) == []
    assert parser.feed(line_end[:1].encode()) == ["a"]
    assert parser.feed(f"{line_end[1:]}data: b{line_end * 2}".encode()) == ["b"]


def test_a_cut_between_cr_and_lf_makes_no_empty_line() -> None:
    assert parse(b"data: a\r", b"\ndata: b\r\n\r", b"", b"\n", b"\ndata: c\n\n") == ["a\nb", "c"]


def test_a_byte_order_mark_at_the_begin_alone() -> None:
    assert parse("\ufeffdata: a\n\n\ufeffdata: b\n\n".encode()) == ["a"]


def test_the_end_of_a_stream() -> None:
    assert parse(b"data: a\n\ndata: [DONE]\n") == ["a", "[DONE]"]
    assert parse(b'data: a\n\ndata: {"half') == ["a"]
    assert parse(b"data: a\n\n: ping\n") == ["a"]
    assert parse() == []


def test_bytes_that_are_no_utf_8() -> None:
    assert parse(b"data: \xff!\n\n") == ["\ufffd!"]
