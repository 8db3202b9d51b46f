"""The settings of a server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pipelines.errors import InputError
from pipelines.text.parsers import REASONING_PARSERS

# field -> (smallest, largest)
_BOUNDS: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "max_queue_size": (0, 100_000),
    "request_timeout_s": (0.001, 7 * 86_400),
    "max_request_bytes": (1024, 2**30),
    "shutdown_timeout_s": (0, 86_400),
    "header_timeout_s": (0.001, 3600),
    "body_timeout_s": (0.001, 3600),
    "send_timeout_s": (0.001, 3600),
}


@dataclass(frozen=True)
class ServeSettings:
    """The settings of one server.

    port: 0 lets the system choose one. api_key: None: none is asked for. served_model_names: the first is the name in
    answers, the others are aliases. max_queue_size: requests that may wait beyond those that run. header_timeout_s,
    body_timeout_s: for a client to send its request. send_timeout_s: for a client to take a piece of its answer.
    cors_origins: "*" for all. allowed_image_hosts: hosts of image addresses, "*" for all public ones; none: images come
    as data: URIs only. reasoning_parser: one of REASONING_PARSERS.

    Raises:
        InputError: A value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    served_model_names: tuple[str, ...] = ("model",)
    max_queue_size: int = 512
    request_timeout_s: float = 3600.0
    max_request_bytes: int = 32 * 2**20
    shutdown_timeout_s: float = 30.0
    header_timeout_s: float = 30.0
    body_timeout_s: float = 60.0
    send_timeout_s: float = 60.0
    cors_origins: tuple[str, ...] = ()
    allowed_image_hosts: tuple[str, ...] = ()
    reasoning_parser: str = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _BOUNDS:
                low, high = _BOUNDS[field.name]
                if not low <= value <= high:
                    raise InputError(f"{_option(field.name)} is {value}: give a number from {low:g} to {high:g}")
        if not self.served_model_names or not all(self.served_model_names):
            raise InputError("--served-model-name is empty: give a name")
        if self.reasoning_parser not in REASONING_PARSERS:
            raise InputError(
                f"--reasoning-parser is '{self.reasoning_parser}': choose one of {', '.join(REASONING_PARSERS)}"
            )
        if self.api_key is not None and not (self.api_key and self.api_key.isascii() and self.api_key.isprintable()):
            raise InputError("--api-key must be printable ASCII characters, and not empty")


def _option(name: str) -> str:
    return "--" + name.removesuffix("_s").replace("_", "-")
