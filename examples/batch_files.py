"""The files of a batch: requests in, results out, and which of them are still to be done.

The lines are those of OpenAI's Batch API. A result's id names its request (file, line, and a digest of the line), so
that a run that was killed goes on where it stopped, and a file that has changed since is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


@dataclass(frozen=True)
class Request:
    """A line of a batch. error: why it can't be sent. body: empty then."""

    id: str
    custom_id: str | None
    url: str = ""
    body: str = ""
    error: str | None = None


def read_requests(path: Path) -> Iterator[Request]:
    """Yields the requests of a file; those that can't be sent have an error."""
    seen = set[str]()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                digest = hashlib.blake2b(line.strip(), digest_size=6).hexdigest()
                yield _parse(f"{path.name}:{number}:{digest}", line, seen)


def _parse(request_id: str, line: bytes, seen: set[str]) -> Request:
    try:
        fields = json.loads(line)
    except ValueError as reason:
        return Request(request_id, None, error=f"the line is no JSON: {reason}")
    if not isinstance(fields, dict):
        return Request(request_id, None, error="the line is no JSON object")
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str):
        return Request(request_id, None, error="custom_id is missing, or no string")
    error = "custom_id is that of an earlier line" if custom_id in seen else _refusal(fields)
    seen.add(custom_id)
    if error is not None:
        return Request(request_id, custom_id, error=error)
    return Request(request_id, custom_id, fields["url"], json.dumps(fields["body"]))


def _refusal(fields: dict[str, Any]) -> str | None:
    """Why a request can't be sent, if it can't."""
    if fields.get("method", "POST") != "POST" or fields.get("url") not in ROUTES:
        return f"method and url must be POST and one of {', '.join(ROUTES)}"
    if not isinstance(fields.get("body"), dict):
        return "body is missing, or no object"
    return "stream: a batch has no streams" if fields["body"].get("stream") else None


def result_of(request: Request, status: int, body: Any) -> dict[str, Any]:
    """The result of a request that was answered, with success or not."""
    response = {"status_code": status, "request_id": request.id, "body": body}
    return {"id": request.id, "custom_id": request.custom_id, "response": response, "error": None}


def refusal_of(request: Request) -> dict[str, Any]:
    """The result of a request that can't be sent."""
    error = {"code": "invalid_request", "message": request.error}
    return {"id": request.id, "custom_id": request.custom_id, "response": None, "error": error}


def done_ids(path: Path) -> set[str]:
    """Ids of the results in a file; a line that a kill has cut is removed from it.

    Raises:
        UsageError: A line is no result.
    """
    if not path.exists():
        return set()
    ids, end = set[str](), 0
    with path.open("r+b") as results:
        for number, line in enumerate(results, 1):
            if not line.endswith(b"\n"):
                results.truncate(end)
                break
            end += len(line)
            try:
                ids.add(json.loads(line)["id"])
            except (ValueError, TypeError, KeyError):
                raise click.UsageError(f"{path}, line {number} is no result: give another --output") from None
    return ids


def to_do(inputs: Sequence[Path], output: Path) -> list[Request]:
    """Requests of the inputs that have no result in the output yet.

    Raises:
        UsageError: Two inputs have the same name, or the output has results of other inputs.
    """
    if len({path.name for path in inputs}) < len(inputs):
        raise click.UsageError("two of the files have the same name: rename one")
    requests = [request for path in inputs for request in read_requests(path)]
    done = done_ids(output)
    if strange := done - {request.id for request in requests}:
        line = min(strange).rpartition(":")[0]
        raise click.UsageError(
            f"{output} has a result of {line}, which is no longer there or has changed: give another"
        )
    return [request for request in requests if request.id not in done]


def line_of(result: dict[str, Any]) -> str:
    """A result as a line of a file."""
    return json.dumps(result) + "\n"  # ASCII: a lone surrogate is no error


def append_lines(path: Path, lines: Iterable[str]) -> int:
    """Appends results to a file, so that they survive a power cut; returns their number."""
    lines = list(lines)
    with path.open("a", encoding="ascii") as file:
        file.write("".join(lines))
        file.flush()
        os.fsync(file.fileno())
    return len(lines)
