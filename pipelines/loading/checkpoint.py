"""A model's files, in a local folder or on the Hugging Face hub: config.json first, weights on request."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import InputError
from pipelines.loading.encodings import QUANT_METHODS
from pipelines.loading.hub import check_reachable, download
from pipelines.quiet import quiet

DEMO_FOLDER = Path(__file__).parents[1] / "demo-base"
BASE_NAME = re.compile(r"(^|[-_])(base|pt)$", re.IGNORECASE)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
CONFIG_FILES = ("config.json", "generation_config.json")
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")


@dataclass(frozen=True)
class Checkpoint:
    """A model whose config.json has been read; its weights may still be on the hub."""

    name: str  # as the user gave it
    path: Path  # the folder of its files
    is_on_hub: bool
    trust_remote_code: bool
    config: dict[str, Any] = field(repr=False)  # the content of config.json
    generation_config: dict[str, Any] = field(repr=False)

    @property
    def architectures(self) -> list[str]:
        """Architecture names of config.json; empty if there are none."""
        names = self.config.get("architectures") or []
        return [str(name) for name in names] if isinstance(names, list) else []

    @property
    def dtype(self) -> str | None:
        """Type of the weights according to config.json, "bfloat16" for example."""
        quantization = self.config.get("quantization_config")
        method = str(quantization.get("quant_method")) if isinstance(quantization, dict) else ""
        if method in QUANT_METHODS:
            return QUANT_METHODS[method]
        texts = (self.config, self._text_config)
        return next((str(c[key]) for c in texts for key in ("dtype", "torch_dtype") if c.get(key)), None)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: those of generation_config.json, else of config.json, else of its text part.

        Raises:
            InputError: They are not token ids.
        """
        for config in (self.generation_config, self.config, self._text_config):
            ids = config.get("eos_token_id")
            if ids is not None:
                ids = ids if isinstance(ids, list) else [ids]
                if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
                    raise InputError(f"eos_token_id of '{self.name}' is {ids}: it must be a token id or a list of them")
                return tuple(dict.fromkeys(ids))
        return ()

    @property
    def is_base_model(self) -> bool:
        """Whether the model's name ends as those of base models do, which continue text: `-base`, `-pt`."""
        return BASE_NAME.search(self.name if self.is_on_hub else self.path.resolve().name) is not None

    @property
    def _text_config(self) -> dict[str, Any]:
        text_config = self.config.get("text_config")
        return text_config if isinstance(text_config, dict) else {}

    @cached_property
    def huggingface_config(self) -> Any:
        """The transformers configuration of config.json, with its defaults. The first access costs seconds: an import.

        Raises:
            InputError: transformers can't read it, or would run code of the checkpoint that is not trusted.
        """
        with quiet():
            from transformers import AutoConfig
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING

            if (
                "auto_map" in self.config
                and self.config.get("model_type") not in CONFIG_MAPPING
                and not self.trust_remote_code
            ):
                raise InputError(
                    f"'{self.name}' has code of its own: read it, then allow it with "
                    "trust_remote_code (--trust-remote-code)"
                )
            try:
                return AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
            except Exception as error:  # transformers has a class of its own for each type of wrong value
                reason = " ".join(str(error).split())[:300]
                raise InputError(f"config.json of '{self.name}' can't be used: {reason}") from error

    def download_weights(self) -> list[Path]:
        """Returns the safetensors files; those on the hub are fetched, with the tokenizer's.

        Raises:
            InputError: They can't be fetched, there are none, or some that the index names are missing.
        """
        if not self.is_on_hub:
            return find_weights(self.path)
        commit = self.path.name  # that of config.json, whatever has been pushed since
        download(self.name, commit, (*MODEL_FILES, *_code_files(self.trust_remote_code)))
        try:
            return find_weights(self.path)
        except InputError:
            check_reachable(self.name, commit)
            raise


def resolve_config(model: str | None, revision: str | None = None, trust_remote_code: bool = False) -> Checkpoint:
    """Finds a model and reads its config.json; of a model on the hub only the configuration is fetched.

    Args:
        model: A folder, a hub id ("org/name"), or None for the demo that comes with the package.
        revision: A branch, tag or commit of a model on the hub.
        trust_remote_code: Whether Python code of the checkpoint may run.

    Raises:
        InputError: There is no such model, it can't be reached, or its config.json is damaged.
    """
    name = "demo" if model is None else model
    folder = DEMO_FOLDER if model is None else _local_folder(model)
    is_on_hub = folder is None
    if folder is None:
        folder = download(name, revision, (*CONFIG_FILES, *_code_files(trust_remote_code)))
    if not (folder / "config.json").is_file():
        raise InputError(f"'{name}' has no config.json: give the folder or hub id of a model in Hugging Face format")
    config, generation_config = (_read_json(folder / file) for file in CONFIG_FILES)
    return Checkpoint(name, folder, is_on_hub, trust_remote_code, config, generation_config)


def find_weights(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder, those of its index if it has one.

    Raises:
        InputError: There are none, or some that the index names are missing.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        return _indexed_weights(index)
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        others = sorted({path.suffix for path in folder.iterdir() if path.suffix in (".bin", ".gguf", ".pt", ".pth")})
        found = f" ({' and '.join(others)} files can't be read)" if others else ""
        raise InputError(f"no safetensors files in {folder}{found}: give a model that has them")
    return paths


def _indexed_weights(index: Path) -> list[Path]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map: download it again")
    names = sorted({Path(str(name)).name for name in weight_map.values()})
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} weight files are missing in {index.parent}: {', '.join(missing)}"
        )
    return [index.parent / name for name in names]


def _code_files(trust_remote_code: bool) -> tuple[str, ...]:
    return ("*.py",) if trust_remote_code else ()


def _local_folder(model: str) -> Path | None:
    """Returns the folder of that name, or None for a name that can be a hub id.

    Raises:
        InputError: The name is neither, or the folder can't be read.
    """
    try:
        path = Path(model).expanduser()
        if model and path.is_dir():
            return path
        if path.is_file():
            raise InputError(f"'{model}' is a file: give the folder with config.json and the safetensors files")
    except (OSError, RuntimeError) as error:  # not readable, too long, "~nobody"
        raise InputError(f"'{model[:80]}' is not a folder that can be read ({error.args[-1]})") from None
    if not HUB_ID.fullmatch(model):
        raise InputError(f"there is no folder '{model}', and it is not a hub id (org/name) either")
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """Reads the object in a file; empty if there is no file.

    Raises:
        InputError: The file can't be read, or holds anything else.
    """
    try:
        value = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): download it again") from None
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object: download it again")
    return value
