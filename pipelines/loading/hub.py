"""Downloads from the Hugging Face hub, with one line for each of its errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import InputError
from pipelines.quiet import quiet

OTHER_FILES = ("*/*", "consolidated*")  # subfolders and second copies of the weights


def download(repo_id: str, revision: str | None, patterns: Sequence[str], ignored: Sequence[str] = OTHER_FILES) -> Path:
    """Fetches the files of a model that match the patterns, and returns the folder they are in.

    If the hub can't be reached, the folder may be one of the local cache that lacks some of them.

    Args:
        repo_id: The model.
        revision: A branch, tag or commit.
        patterns: Of the files.
        ignored: Patterns of files that are left out.

    Raises:
        InputError: The model can't be fetched, for whatever reason.
    """
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    try:
        with quiet(), disable_progress_bars():
            return Path(
                huggingface_hub.snapshot_download(
                    repo_id, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ignored)
                )
            )
    except Exception as error:  # errors of the client, its HTTP library and the disk have no common class
        raise InputError(_explain(error, repo_id, revision)) from error


def list_files(repo_id: str, revision: str) -> list[str]:
    """Asks the hub for the files of a model, of which the local cache lacks some.

    Raises:
        InputError: The hub can't be reached, which explains the missing files.
    """
    import huggingface_hub

    try:
        with quiet():
            found = huggingface_hub.HfApi().model_info(repo_id, revision=revision)
            return [file.rfilename for file in found.siblings or ()]
    except huggingface_hub.errors.HfHubHTTPError as error:
        raise InputError(_explain(error, repo_id, revision)) from error
    except Exception as error:
        raise InputError(_explain_absence(error, repo_id, revision)) from error


def _explain(error: Exception, repo_id: str, revision: str | None) -> str:
    """Returns one line that names the problem and the remedy."""
    from huggingface_hub import constants, errors

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
    if isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)):
        return _explain_absence(error, repo_id, revision)
    if constants.HF_HUB_CACHE.startswith("~"):  # Python leaves it so if the user has no home
        return f"can't fetch '{repo_id}': there is no home folder to keep it in; set HF_HOME to a folder of yours"
    if isinstance(error, OSError) and error.filename is not None:
        return f"can't fetch '{repo_id}' into {error.filename} ({error.strerror}): set HF_HOME to a folder of yours"
    return f"can't fetch '{repo_id}' ({type(error).__name__}: {error}): check the disk and the network"


def _explain_absence(error: Exception, repo_id: str, revision: str | None) -> str:
    """Returns one line for files that the local cache lacks while the hub can't be reached."""
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    lacking = f"there is no folder '{repo_id}', the local cache lacks it"
    if isinstance(huggingface_hub.try_to_load_from_cache(repo_id, "config.json", revision=revision), str):
        lacking = f"the local cache has config.json of '{repo_id}', but not its weights"
    if isinstance(error, OfflineModeIsEnabled) or isinstance(error.__cause__, OfflineModeIsEnabled):
        return f"{lacking}, and HF_HUB_OFFLINE forbids fetching: unset it, or fetch the model where there is a network"
    return f"{lacking}, and the hub can't be reached: check the network"
