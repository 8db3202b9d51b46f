"""Peak memory of a model that generates 32 tokens, beside the size of its checkpoint.

    python benchmarks/memory.py --shape google__gemma-4-E2B-it [--folder FOLDER]

Writes a random checkpoint in a published shape (10 GB for that one, removed at the end unless a folder is named),
runs the `pipelines generate` command on it and reads the peak of its resident memory, mapped files included. The output
names the tables whose rows are looked up in the mapped file: they should not be resident.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from checkpoints import BYTES, read_tensor_list, write_random_checkpoint
from generate import CONFIGS, DEMO

from pipelines.registry import Registry

COMMAND = Path(sys.executable).with_name("pipelines")


def peak_mib(model: Path) -> float:
    """Peak memory of the command, as it reports it itself."""
    options = ["--raw", "--prompt", "import os", "--max-new-tokens", "32", "--max-length", "512", "--stats"]
    result = subprocess.run(
        [COMMAND, "generate", "--model", model, *options],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),  # without the PYTHONEXECUTABLE that MAX sets unseen by Python
    )
    if result.returncode:
        raise click.ClickException(result.stderr)
    click.echo(result.stderr.strip())
    return float(re.findall(r"peak memory (\d+) MiB", result.stderr)[-1])


@click.command()
@click.option("--shape", default="google__gemma-4-E2B-it", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Keeps the checkpoint there, or uses the one that is.")
def main(shape: str, folder: Path | None) -> None:
    """Print the peak memory of a model beside the size of its checkpoint."""
    tensors = read_tensor_list(CONFIGS / shape / "tensors.json")
    architecture = Registry.load().find(json.loads((CONFIGS / shape / "config.json").read_text())["architectures"])
    sizes = {name: math.prod(dims) * BYTES[dtype] / 2**20 for name, (dtype, dims) in tensors.items()}
    tables = {name: size for name, size in sizes.items() if name.endswith(architecture.lookup_tables)}
    with tempfile.TemporaryDirectory() as temporary:
        model = folder or Path(temporary)
        if not (model / "model.safetensors").exists():
            write_random_checkpoint(model, CONFIGS / shape / "config.json", tensors, DEMO)
        peak = peak_mib(model)
    checkpoint = sum(sizes.values())
    for name, size in tables.items():
        click.echo(f"{name}: {size:,.0f} MiB, of which rows are looked up")
    click.echo(f"checkpoint {checkpoint:,.0f} MiB, peak RSS {peak:,.0f} MiB: {checkpoint - peak:,.0f} MiB below it")


if __name__ == "__main__":
    main()
