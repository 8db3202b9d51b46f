"""The graphs that are compiled for GPUs on machines that have none.

`python tests/support/gpu_graphs.py --list` shows them; `--all` or ids compile them one by one and print rows of the
table in docs/gpu.md. `make test-gpu-compile` compiles those of the suite: more than half an hour on two cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tiny_models
from tiny_multimodal import write_gemma3_multimodal_for_gpus

SCRIPT = Path(__file__).with_name("compile_for_gpus.py")
CONFIGS = Path(__file__).parents[1] / "configs"
TIMEOUT_S = 3600
WRITERS = {"gemma3_multimodal_for_gpus": write_gemma3_multimodal_for_gpus}


@dataclass(frozen=True)
class Case:
    """Graphs that one process compiles.

    model: a tiny model of tiny_models.py, or a published one. num_layers: of a published one, whose other sizes are its
    own; None: all of them, as for Gemma 4 E2B, whose per-layer embeddings are the wider the more layers there are.
    tables_on_host: whether these are read there, as on GPUs that have little room for them. in_suite: whether
    `make test-gpu-compile` compiles them.
    """

    model: str
    num_devices: int = 1
    encoding: str = "bfloat16"
    graphs: tuple[str, ...] = ("decoder",)
    target: str = "cuda:sm_90a"
    num_layers: int | None = None
    tables_on_host: bool = False
    in_suite: bool = False

    @property
    def id(self) -> str:
        api = "" if self.target.startswith("cuda") else f"-{self.target.replace(':', '-')}"
        return f"{self.model}-{self.num_devices}{api}{'-tables-on-host' * self.tables_on_host}"

    @property
    def devices(self) -> str:
        return "gpu:" + ",".join(map(str, range(self.num_devices)))

    def write(self, folder: Path) -> Path:
        """The folder of the model, which is written there if it is a tiny one."""
        if (CONFIGS / self.model).is_dir():
            return CONFIGS / self.model
        writer = WRITERS.get(self.model) or getattr(tiny_models, self.model)
        if self.num_devices > 1:
            tiny_models.write_for_eight_devices(writer, folder / self.id)
        else:
            writer(folder / self.id)
        return folder / self.id

    def compile(self, folder: Path) -> list[dict[str, Any]]:
        """Compiles the graphs, whose model may be written to `folder`: what compile_for_gpus.py prints of each."""
        command: list[str | Path] = [sys.executable, SCRIPT, self.write(folder), self.devices, self.encoding]
        command += [*self.graphs, "--target", self.target]
        command += [] if self.num_layers is None else ["--layers", str(self.num_layers)]
        command += ["--tables-on-host"] * self.tables_on_host
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env=dict(os.environ),  # an engine that was opened in this process has set PYTHONEXECUTABLE behind our back
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


IMAGES = ("decoder_for_images", "vision_tower")
FLOAT8 = "float8_e4m3fn"
TINY = ("gemma3", "gemma4", "llama3", "qwen3", "qwen3_moe")
IN_SUITE = (
    Case("gemma4", 1, in_suite=True),
    Case("gemma3", 2, in_suite=True),
    Case("qwen3_moe_fp8", 1, FLOAT8, in_suite=True),
    Case("gemma3_multimodal_for_gpus", 1, graphs=IMAGES, in_suite=True),
    Case("qwen3_dense_fp8", 1, FLOAT8, in_suite=True),
    Case("llama3", 1, in_suite=True),
)
"""The slowest, and what differs most, first: a run that must end in time leaves out the last ones."""
OTHERS = (
    Case("llama3", 2, target="hip:gfx942"),
    Case("gemma4", 1, tables_on_host=True),
    *(Case(name, count) for name in TINY for count in (1, 2, 8)),
    *(Case("gemma3_multimodal_for_gpus", count, graphs=IMAGES) for count in (2, 8)),
    Case("google__gemma-3-1b-it", 1, num_layers=6),
    Case("google__gemma-3-1b-it", 4, num_layers=6),
    Case("google__gemma-3-4b-it", 1, graphs=("decoder", *IMAGES), num_layers=6),
    Case("google__gemma-3-4b-it", 8, graphs=("decoder", "decoder_for_images"), num_layers=6),
    *(Case("google__gemma-4-E2B-it", count) for count in (1, 8)),
    *(Case("meta-llama__Llama-3.1-8B-Instruct", count, num_layers=2) for count in (1, 8)),
    *(Case("Qwen__Qwen3-8B", count, num_layers=2) for count in (1, 8)),
    *(Case("Qwen__Qwen3-8B-FP8", count, FLOAT8, num_layers=2) for count in (1, 8)),
    *(Case("Qwen__Qwen3-30B-A3B", count, num_layers=2) for count in (1, 8)),
)
CASES = {case.id: case for case in (*OTHERS, *IN_SUITE)}
"""By id; Gemma 3 1B has 4 heads, which eight devices can't share."""


def row(case: Case, graph: dict[str, Any]) -> str:
    """A row of the table."""
    depth = "" if case.num_layers is None else f", {case.num_layers} layers"
    cells = (f"{case.model}{depth}", graph["graph"], case.encoding, case.num_devices, case.target)
    return f"| {' | '.join(map(str, cells))} | {graph['seconds']} | {graph['bytes'] / 1e6:.1f} |"


def main(ids: Iterable[str]) -> None:
    say = functools.partial(print, flush=True)
    say("| model | graph | encoding | GPUs | target | seconds | MB |\n| --- | --- | --- | --- | --- | --- | --- |")
    with TemporaryDirectory() as folder:
        for case in map(CASES.__getitem__, ids):
            try:
                for graph in case.compile(Path(folder)):
                    say(row(case, graph))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                say(f"{case.id} failed: {error}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("ids", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(CASES))
    else:
        main(CASES if arguments.all else arguments.ids)
