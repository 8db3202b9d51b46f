"""A model's files, in a local folder, a GGUF file or on the Hugging Face hub: its configuration, weights on request."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import InputError
from pipelines.loading.encodings import QUANT_METHODS
from pipelines.loading.gguf.config import gguf_config, gguf_family
from pipelines.loading.gguf.description import num_embeddings
from pipelines.loading.gguf.file import GgufModel, open_gguf
from pipelines.loading.gguf.generation import gguf_generation_config
from pipelines.loading.gguf.source import (
    fetch_from_hub,
    find_in_folder,
    find_local,
    is_gguf_file,
    model_files,
    several,
)
from pipelines.loading.hub import download, list_files
from pipelines.quiet import quiet

DEMO_FOLDER = Path(__file__).parents[1] / "demo-base"
BASE_NAME = re.compile(r"(^|[-_])(base|pt)$", re.IGNORECASE)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = ("*.json", "*.jinja", "tokenizer.model")
MODEL_FILES = ("*.safetensors", *TOKENIZER_FILES)


@dataclass(frozen=True)
class Checkpoint:
    """A model whose configuration has been read; its weights may still be on the hub.

    Files that the folder lacks are replaced by the metadata of the GGUF file, if the weights are in one.
    """

    name: str  # as the user gave it
    path: Path  # the folder of its files; the GGUF file if it was given alone
    is_on_hub: bool
    trust_remote_code: bool
    config: dict[str, Any] = field(repr=False)  # the content of config.json
    generation_config: dict[str, Any] = field(repr=False)
    gguf: GgufModel | None = field(default=None, repr=False)  # None: the weights are in safetensors files

    @property
    def weights_format(self) -> str:
        """The format of the weights, for which architectures have adapters."""
        return "safetensors" if self.gguf is None else "gguf"

    @property
    def config_source(self) -> str:
        """Name of the configuration's source, for messages."""
        return f"config.json of '{self.name}'" if self._has_config_file else f"the metadata of '{self.name}'"

    @property
    def architectures(self) -> list[str]:
        """Architecture names of config.json, empty if there are none; of GGUF files, that of their text model."""
        if self.gguf is not None:
            return [gguf_family(self.gguf).architecture]
        names = self.config.get("architectures") or []
        return [str(name) for name in names] if isinstance(names, list) else []

    @property
    def dtype(self) -> str | None:
        """Type of the weights according to config.json, "bfloat16" for example, or to the GGUF file."""
        if self.gguf is not None:
            return self.gguf.dtype
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
        """Whether the model's name ends as those of base models do, which continue text: `-base`, `-pt`.

        A GGUF file that was given alone has its name inside, and without a chat template it is a base model too.
        """
        if self.gguf is not None and not self.path.is_dir():
            names = (self.gguf.metadata.text(f"general.{key}", "") for key in ("name", "finetune"))
            is_base = any(BASE_NAME.search(name.replace(" ", "-")) for name in names)
            return is_base or "tokenizer.chat_template" not in self.gguf.metadata
        return BASE_NAME.search(self.name if self.is_on_hub else self.path.resolve().name) is not None

    @property
    def _text_config(self) -> dict[str, Any]:
        text_config = self.config.get("text_config")
        return text_config if isinstance(text_config, dict) else {}

    @cached_property
    def huggingface_config(self) -> Any:
        """The transformers configuration, with its defaults. The first access costs seconds: an import.

        Raises:
            InputError: transformers can't read it, or would run code of the checkpoint that is not trusted.
        """
        if not self._has_config_file:
            return self._config_of_metadata()
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
                config = AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
            except Exception as error:  # transformers has a class of its own for each type of wrong value
                reason = " ".join(str(error).split())[:300]
                raise InputError(f"config.json of '{self.name}' can't be used: {reason}") from error
        if self.gguf is not None:  # llama.cpp's converter drops embeddings that no token has
            config.get_text_config().vocab_size = num_embeddings(self.gguf)
        return config

    def download_weights(self) -> list[Path]:
        """Returns the files of the weights; those on the hub are fetched, with the tokenizer's.

        Raises:
            InputError: They can't be fetched, there are none, or some that the index names are missing.
        """
        commit = self.path.name  # that of config.json, whatever has been pushed since
        if self.is_on_hub:
            files = MODEL_FILES if self.gguf is None else TOKENIZER_FILES
            download(self.name, commit, (*files, *_code_files(self.trust_remote_code)))
        if self.gguf is not None:
            return self.gguf.paths
        try:
            return find_weights(self.path)
        except InputError:
            if self.is_on_hub and (names := model_files(list_files(self.name, commit))):
                raise several(f"'{self.name}'", names) from None
            raise

    @property
    def _has_config_file(self) -> bool:
        return self.gguf is None or (self.path / "config.json").is_file()

    def _config_of_metadata(self) -> Any:
        """The transformers configuration of a GGUF file."""
        with quiet():
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING

            try:
                return CONFIG_MAPPING[self.config["model_type"]].from_dict(self.config)
            except Exception as error:  # as for config.json
                reason = " ".join(str(error).split())[:300]
                raise InputError(f"{self.config_source} can't be used: {reason}") from error


def resolve_config(
    model: str | None, revision: str | None = None, trust_remote_code: bool = False, weight_path: str | None = None
) -> Checkpoint:
    """Finds a model and reads its configuration; of safetensors files on the hub nothing else is fetched.

    Args:
        model: A folder, a GGUF file, a hub id ("org/name"), or None for `weight_path` alone or, without it, for the
            demo that comes with the package.
        revision: A branch, tag or commit of a model on the hub.
        trust_remote_code: Whether Python code of the checkpoint may run.
        weight_path: A GGUF file, the model's folder or repository being where other files are; None: its only one, if
            it has no safetensors files.

    Raises:
        InputError: There is no such model, it can't be reached, or its configuration is damaged.
    """
    if is_gguf_file(model) and weight_path is not None:
        raise InputError(f"both model (--model) '{model}' and weight_path (--weight-path) are GGUF files: give one")
    if is_gguf_file(model) or (model is None and weight_path is not None):
        return _resolve_file(find_local(None, model or weight_path or ""), trust_remote_code)
    name = "demo" if model is None else model
    folder = DEMO_FOLDER if model is None else _local_folder(model)
    is_on_hub = folder is None
    if folder is None:
        folder = download(name, revision, (*CONFIG_FILES, *_code_files(trust_remote_code)))
    file = (_find_on_hub if is_on_hub else _find_in_folder)(name, folder, weight_path)
    if file is None and not (folder / "config.json").is_file():
        raise InputError(f"'{name}' has no config.json: give the folder or hub id of a model in Hugging Face format")
    config, generation_config = (_read_json(folder / file_name) for file_name in CONFIG_FILES)
    if file is None:
        return Checkpoint(name, folder, is_on_hub, trust_remote_code, config, generation_config)
    gguf = open_gguf(file)
    _check_same_model(name, config, gguf)
    config, generation_config = config or gguf_config(gguf), generation_config or gguf_generation_config(gguf.metadata)
    return Checkpoint(name, folder, is_on_hub, trust_remote_code, config, generation_config, gguf)


def _resolve_file(file: Path, trust_remote_code: bool) -> Checkpoint:
    """Reads all that a GGUF file says; other files in its folder need not belong to it."""
    gguf = open_gguf(file)
    generation_config = gguf_generation_config(gguf.metadata)
    return Checkpoint(str(file), file, False, trust_remote_code, gguf_config(gguf), generation_config, gguf)


def _find_in_folder(name: str, folder: Path, weight_path: str | None) -> Path | None:
    return find_in_folder(folder) if weight_path is None else find_local(folder, weight_path)


def _find_on_hub(name: str, folder: Path, weight_path: str | None) -> Path | None:
    """Fetches the GGUF file of a model on the hub. One with a config.json is taken for one in safetensors files."""
    if is_gguf_file(weight_path):
        return find_local(None, weight_path or "")
    if weight_path is None and (folder / "config.json").is_file():
        return None
    return fetch_from_hub(name, folder.name, weight_path)


def _check_same_model(name: str, config: dict[str, Any], gguf: GgufModel) -> None:
    """Checks that a GGUF file holds a model of the type that config.json describes, if there is one."""
    text_config = config.get("text_config")
    found = (text_config if isinstance(text_config, dict) else config).get("model_type")
    expected = gguf_family(gguf).model_type
    if config and found != expected:
        raise InputError(
            f"{gguf.name} is a model of type {expected}, and config.json of '{name}' describes one of type {found}: "
            "give the file alone, or the folder of its model"
        )


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
            raise InputError(
                f"'{model}' is a file: give the folder with config.json and the safetensors files, or a GGUF file"
            )
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
