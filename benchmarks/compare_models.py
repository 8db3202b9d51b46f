"""The files that compare.py measures: random checkpoints in published shapes, and copies in the peers' formats."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import click
from checkpoints import read_tensor_list, write_random_checkpoint
from generate import CONFIGS, DEMO
from gguf_checkpoint import pad_tokenizer, write_gguf

SYSTEMS = ("pipelines", "OpenVINO", "llama.cpp", "transformers")


class NotAvailable(Exception):
    """A system can't run a row; the message says why."""


@dataclass(frozen=True)
class Row:
    """An encoding, as each system names it; None: the system has none.

    pipelines: an encoding, with a + that of the head, with an @ that of the activations. llama_cpp: those of the GGUF
    file, likewise. openvino: options of its exporter; 4 bits are in groups of 128, and leave the head in 8, unless the
    options say otherwise.
    """

    pipelines: str
    llama_cpp: str
    openvino: str | None
    transformers: str | None = None


ROWS = {
    "float32": Row("float32", "float32", "--weight-format fp32", "float32"),
    "16-bit": Row("bfloat16", "bfloat16", "--weight-format fp16", "bfloat16"),
    "16-bit, bfloat16 activations": Row("bfloat16@bfloat16", "bfloat16", "--weight-format fp16", "bfloat16"),
    "8-bit": Row("q8_0", "q8_0", "--weight-format int8"),
    "4-bit, 8-bit head": Row("q4_0+q8_0", "q4_0+q8_0", "--weight-format int4"),
    "4-bit": Row("q4_0+q4_0", "q4_0+q4_0", "--weight-format int4 --all-layers"),
}


@dataclass(frozen=True)
class Models:
    """The models of one shape, made when they are first asked for and kept in a folder.

    exporter: optimum-cli of an environment with optimum-intel; None: OpenVINO can run what is there already.
    """

    folder: Path
    exporter: Path | None

    @classmethod
    def of_shape(cls, folder: Path, shape: str, exporter: Path | None) -> Models:
        """Writes the checkpoint, if it is not there."""
        models = cls(folder / shape, exporter)
        if not (models.folder / "model.safetensors").exists():
            tensors = read_tensor_list(CONFIGS / shape / "tensors.json")
            write_random_checkpoint(models.folder, CONFIGS / shape / "config.json", tensors, DEMO)
            pad_tokenizer(models.folder)
        return models

    def model_of(self, system: str, row: Row) -> tuple[Path, str]:
        """The model that a system loads for a row, and the name of its encoding there.

        Raises:
            NotAvailable: There is none.
        """
        if system == "pipelines":
            return self.folder, row.pipelines
        if system == "llama.cpp":
            return self._gguf(row.llama_cpp), row.llama_cpp
        encoding = row.openvino if system == "OpenVINO" else row.transformers
        if encoding is None:
            raise NotAvailable("it has no such encoding")
        return (self._openvino(encoding), row.pipelines) if system == "OpenVINO" else (self.folder, encoding)

    def _gguf(self, encoding: str) -> Path:
        path = self.folder / f"{encoding}.gguf"
        if not path.exists():
            name, _, head = encoding.partition("+")
            write_gguf(self.folder, path.with_suffix(".part"), name, head or None).rename(path)
        return path

    def _openvino(self, options: str) -> Path:
        folder = self.folder / options.replace("--weight-format ", "openvino-").replace(" --", "-")
        if folder.exists():
            return folder
        if self.exporter is None:
            raise NotAvailable("there is no --export-python to make its model")
        part = folder.with_suffix(".part")
        command = [str(self.exporter), "export", "openvino", "--model", str(self.folder)]
        command += ["--task", "text-generation-with-past", *options.split(), str(part)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode:
            raise NotAvailable(f"the export has failed: {' '.join(done.stderr.split())[-200:]}")
        return part.rename(folder)


def exporter_of(python: Path | None) -> Path | None:
    """optimum-cli beside an interpreter."""
    if python is None:
        return None
    exporter = python.with_name("optimum-cli")
    if not exporter.exists():
        raise click.ClickException(f"{exporter} does not exist: pip install optimum-intel there")
    return exporter
