"""The `pipelines serve` command."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

from pipelines.commands.progress import console_stages
from pipelines.config import PipelineConfig

if TYPE_CHECKING:
    from pipelines.text_generation import TextGenerationPipeline

LOG_FORMATS = ("text", "json")


def serve_from_console(config: PipelineConfig, log_level: str, log_format: str, **settings: Any) -> None:
    """Serves a model until the process is told to end.

    Args:
        config: The run; prefixes are reused across requests.
        log_level: Least level of what is logged on stderr.
        log_format: One of LOG_FORMATS.
        settings: Fields of ServeSettings.

    Raises:
        InputError: A setting is out of range, the port is in use, or the model can't be loaded.
    """
    from pipelines.serve.runner import reserve_port, run
    from pipelines.serve.service import Service
    from pipelines.serve.settings import ServeSettings

    names = settings.pop("served_model_names") or (config.model or "demo",)
    serve_settings = ServeSettings(**settings, served_model_names=tuple(names))
    listener = reserve_port(serve_settings.host, serve_settings.port)
    _log_to_stderr(log_level, log_format)
    stages = console_stages(sys.stderr)
    host, port = listener.getsockname()[:2]
    stages.note(f"listening on http://{host}:{port} (/ready answers 200 once the model is loaded)")
    config = dataclasses.replace(config, enable_prefix_caching=True)

    def load() -> TextGenerationPipeline:
        from pipelines.load import load_pipeline
        from pipelines.without_torch import import_transformers_without_torch

        import_transformers_without_torch(config)
        pipeline = load_pipeline(config, stages)  # the service warms it up
        gc.collect()
        gc.freeze()  # the collector need not walk all that was loaded, for tenths of a second, while requests wait
        return pipeline

    run(Service(load, serve_settings), serve_settings, listener)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields that a record carries."""

    _STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """Writes a record as a line of JSON."""
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in self._STANDARD},
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def _log_to_stderr(level: str, log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else plain)
    logger = logging.getLogger("pipelines")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
