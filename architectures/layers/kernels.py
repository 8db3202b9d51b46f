"""Our Mojo kernels as a library that graphs can be declared with."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from max.graph import DeviceRef
from mojo.run import subprocess_run_mojo

from pipelines.errors import InputError

SOURCES = Path(__file__).parents[1] / "kernels"


def extensions(devices: Sequence[DeviceRef]) -> list[Path]:
    """What a graph on these devices has to be declared with; the kernels are for the CPU."""
    return [kernel_library()] if any(device.is_cpu() for device in devices) else []


@functools.cache
def kernel_library() -> Path:
    """The compiled kernels: made once for each version of them and of MAX, in about ten seconds, and kept on disk.

    MAX would compile a folder of sources anew for every graph.

    Raises:
        InputError: The user's cache folder can't be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graph-pipelines"
    content = version("max").encode() + b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.mojo")))
    library = cache / f"kernels_{hashlib.sha256(content).hexdigest()[:16]}.mojoc"
    if not library.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=cache) as folder:  # then renamed, so that nobody reads half a file
                _compile(Path(folder) / library.name).replace(library)
        except OSError as error:
            raise InputError(
                f"can't write {cache} ({error.strerror}): set XDG_CACHE_HOME to a folder of yours"
            ) from None
    return library


def _compile(library: Path) -> Path:
    subprocess_run_mojo(["precompile", str(SOURCES), "-o", str(library)], capture_output=True, check=True)
    return library
