"""The `pipelines list` command."""

from __future__ import annotations

import sys

from pipelines.registry import Registry


def list_architectures() -> None:
    """Prints a table of the architectures on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("architecture", "sizes", "input", "on CPU", "on GPU", "example models", box=box.SIMPLE)
    for name, record in sorted(Registry.load().architectures.items()):
        encodings = ["\n".join(record.encodings.get(device_kind, ())) or "-" for device_kind in ("cpu", "gpu")]
        table.add_row(
            name, record.sizes, " and ".join(record.input_modalities), *encodings, "\n".join(record.example_repo_ids)
        )
    Console(width=None if sys.stdout.isatty() else 150).print(table)
