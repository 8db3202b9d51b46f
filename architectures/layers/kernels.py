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

SOURCES = Path(__file__).parents[1] / "kernels"


def extensions(devices: Sequence[DeviceRef]) -> list[Path]:
    """What a graph on these devices has to be declared with; the kernels are for the CPU."""
    return [kernel_library()] if any(device.is_cpu() for device in devices) else []


@functools.cache
def kernel_library() -> Path:
    """The compiled kernels: made once for each version of them and of MAX, in about ten seconds, and kept on disk.

    MAX would compile a folder of sources anew for every graph.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graph-pipelines"
    content = version("max").encode() + b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.mojo")))
    library = cache / f"kernels_{hashlib.sha256(content).hexdigest()[:16]}.mojoc"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as folder:  # then renamed, so that nobody reads half a file
            made = Path(folder) / library.name
            _compile(made)
            made.replace(library)
    return library


def _compile(library: Path) -> None:
    from mojo.run import subprocess_run_mojo

    subprocess_run_mojo(["precompile", str(SOURCES), "-o", str(library)], capture_output=True, check=True)
