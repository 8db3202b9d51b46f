"""The Hugging Face hub, and what its refusals mean in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import InputError
from pipelines.quiet import quiet

OTHER_FILES = ("*/*", "consolidated*")  # subfolders and second copies of the weights


def download(repo_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Fetch the files of a model that match ``patterns``, or find them in the local cache; the folder they are in.

    Raises InputError for whatever keeps them from being there.
    """
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    try:
        with quiet(), disable_progress_bars():
            return Path(
                huggingface_hub.snapshot_download(
                    repo_id, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(OTHER_FILES)
                )
            )
    except Exception as error:  # the client's, its HTTP library's and the disk's: they have no common class
        raise InputError(_explain(error, repo_id, revision)) from error


def _explain(error: Exception, repo_id: str, revision: str | None) -> str:
    """One line: what is wrong, and what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo_id}"
    if isinstance(error, errors.GatedRepoError):
        return f"'{repo_id}' is gated: accept the licence at {page}, then set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no folder '{repo_id}' and no such model on the hub; if it is private, set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"'{repo_id}' has no revision '{revision}': see {page}/tree/main"
    if isinstance(error, errors.DisabledRepoError):
        return f"'{repo_id}' has been disabled on the hub: see {page}"
    if isinstance(error, errors.HFValidationError):
        return f"'{repo_id}' is neither a folder nor a hub id (org/name)"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub refused '{repo_id}' (HTTP {error.response.status_code}): see {page}, or try again later"
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return f"there is no folder '{repo_id}', the local cache lacks it, and HF_HUB_OFFLINE forbids to fetch it"
    if isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)):
        return (
            f"there is no folder '{repo_id}', the local cache lacks it, and the hub can't be reached: check the network"
        )
    return f"can't fetch '{repo_id}' ({type(error).__name__}: {error}): check the disk and the network"
