"""The places where GGUF files are found: a path, a folder, a repository on the hub."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import InputError
from pipelines.loading.gguf.file import first_shards, shard_names
from pipelines.loading.hub import download, list_files

MAX_LISTED = 20


def is_gguf_file(path: str | None) -> bool:
    """Whether this is the path of a GGUF file that exists."""
    try:
        return path is not None and path.endswith(".gguf") and Path(path).expanduser().is_file()
    except (OSError, RuntimeError):  # not readable, too long, "~nobody"
        return False


def model_files(names: Sequence[str]) -> list[str]:
    """Returns the names of GGUF files that are models: the first of their shards, and no projectors of images."""
    return sorted(first_shards([name for name in names if name.endswith(".gguf") and "mmproj" not in name.lower()]))


def find_local(folder: Path | None, weight_path: str) -> Path:
    """Returns the file at a path, or at a path in the model's folder.

    Raises:
        InputError: There is no such file.
    """
    if is_gguf_file(weight_path):
        return Path(weight_path).expanduser()
    if folder is not None and is_gguf_file(str(folder / weight_path)):
        return folder / weight_path
    there = "" if folder is None else f", and none in {folder}"
    raise InputError(f"there is no GGUF file '{weight_path[:200]}'{there}")


def find_in_folder(folder: Path) -> Path | None:
    """Returns the GGUF file of a folder without safetensors files; None if it has none, or has safetensors files.

    Raises:
        InputError: It has several.
    """
    if any(folder.glob("*.safetensors")):
        return None
    names = model_files([path.name for path in folder.glob("*.gguf")])
    if len(names) > 1:
        raise several(str(folder), names)
    return folder / names[0] if names else None


def fetch_from_hub(repo_id: str, commit: str, weight_path: str | None) -> Path | None:
    """Downloads a GGUF file with its other shards, and returns where it is; None if the model has none.

    Args:
        repo_id: The model.
        commit: Its commit.
        weight_path: The file in the repository; None: the only one that there is.

    Raises:
        InputError: There is no such file, there are several and none is chosen, or it can't be fetched.
    """
    if weight_path is None:
        names = model_files(list_files(repo_id, commit))
        if len(names) > 1:
            raise several(f"'{repo_id}'", names)
        if not names:
            return None
        weight_path = names[0]
    folder = download(repo_id, commit, [glob.escape(name) for name in shard_names(weight_path)], ignored=())
    if not (folder / weight_path).is_file():
        names = model_files(list_files(repo_id, commit))
        has = f"its GGUF files are {_listed(names)}" if names else "it has no GGUF files"
        raise InputError(f"'{repo_id}' has no file '{weight_path[:200]}': {has}")
    return folder / weight_path


def several(where: str, names: Sequence[str]) -> InputError:
    """Returns the error for a model with several GGUF files, none of which is chosen."""
    return InputError(
        f"{where} has {len(names)} GGUF files: choose one with weight_path (--weight-path): {_listed(names)}"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
