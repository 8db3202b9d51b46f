"""transformers without torch: where torch is installed, its import would cost a start more than a second."""

from __future__ import annotations

import sys

from pipelines.config import PipelineConfig
from pipelines.quiet import quiet


def import_transformers_without_torch(config: PipelineConfig) -> None:
    """Imports transformers as it is where torch is not installed; nothing that runs a model here needs more of it.

    transformers looks for torch once, and has no setting that says not to. So this is for commands, whose process is
    theirs: a library must leave the choice to its caller. Nothing happens if torch or transformers is imported already,
    or if code of others, which may need torch, runs in the process.
    """
    if config.trust_remote_code or config.custom_architectures or {"torch", "transformers"} & sys.modules.keys():
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
    try:
        with quiet():
            import transformers.configuration_utils  # noqa: F401
    finally:
        del sys.modules["torch"]
