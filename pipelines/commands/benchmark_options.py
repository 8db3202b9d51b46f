"""The options of `pipelines benchmark`: those of its two modes, a model in this process and a server, and of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pipelines.errors import InputError

_LOCAL = (
    click.Option(
        ["--prompt-length", "prompt_lengths"],
        type=int,
        multiple=True,
        metavar="N",
        help="Tokens; 0: none.  [default: 512]",
    ),
    click.Option(
        ["--generate-length", "generate_lengths"],
        type=int,
        multiple=True,
        metavar="N",
        help="New tokens, one a step; 0: none.  [default: 128]",
    ),
    click.Option(["--depth", "depths"], type=int, multiple=True, metavar="N", help="Tokens before.  [default: 0]"),
    click.Option(["--batch-size", "batch_sizes"], type=int, multiple=True, metavar="N", help="Rows.  [default: 1]"),
    click.Option(["--repetitions"], type=int, default=5, show_default=True, help="Of each test, after a warm-up."),
    click.Option(["--markdown", "as_markdown"], is_flag=True, help="The table in Markdown."),
)
_SERVER = (
    click.Option(
        ["--url"],
        help="Its address, with or without /v1. --model is then the name that requests carry.  [default: the first of"
        " GET /v1/models]",
    ),
    click.Option(["--api-key"], envvar="PIPELINES_API_KEY", help="The key that the server asks for."),
    click.Option(["--endpoint"], type=click.Choice(["completions", "chat"]), default="completions", show_default=True),
    click.Option(["--num-requests"], type=int, help="[default: 100, or those of --prompts]"),
    click.Option(
        ["--request-rate"],
        type=float,
        default=float("inf"),
        show_default=True,
        metavar="PER_SECOND",
        help="Mean of Poisson arrivals; latencies count from when a request was due.",
    ),
    click.Option(["--concurrency"], type=int, help="Requests in flight, at most.  [default: no limit]"),
    click.Option(
        ["--prompt-tokens"], default="256", show_default=True, metavar="N|LOW:HIGH", help="Of random prompts."
    ),
    click.Option(["--output-tokens"], default="128", show_default=True, metavar="N|LOW:HIGH"),
    click.Option(
        ["--prompts", "prompts_file"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A text a line, or JSONL: a string, or an object with prompt and output_tokens.",
    ),
    click.Option(
        ["--shared-prefix-tokens"],
        type=int,
        default=0,
        show_default=True,
        help="Tokens that all random prompts begin with, in addition to --prompt-tokens.",
    ),
    click.Option(["--warmup", "num_warmup"], type=int, default=1, show_default=True, help="Requests before the load."),
    click.Option(["--ignore-eos/--no-ignore-eos"], default=True, show_default=True, help="Answers of full length."),
    click.Option(["--timeout", "timeout_s"], type=float, default=600.0, show_default=True, metavar="SECONDS"),
    click.Option(["--extra-body"], metavar="JSON", help="Fields to add to each request; null removes one."),
    click.Option(
        ["--plot", "plot_file"], type=click.Path(path_type=Path), metavar="FILE", help="Draw into a .png or .svg file."
    ),
)
_SHARED = (
    click.Option(
        ["--seed"], type=int, help="Of prompts, lengths and arrivals.  [default: 0; for a server another each time]"
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="One JSON object in place of the table."),
)
LOCAL_OPTIONS, SERVER_OPTIONS = (tuple(option.name or "" for option in options) for options in (_LOCAL, _SERVER))
SHARED_OPTIONS = ("model", *(option.name or "" for option in _SHARED))
"""Names of the options of both modes; --model names a checkpoint, or the model of a server."""
_LEFT_OUT = ("max_length", "max_batch_size", "generation_config")
"""Options of a model that follow from the tests, or are for sampling."""


class BenchmarkCommand(click.Command):
    """Adds its options to those of a model, and shows those of its two modes apart."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        of_model = [option for option in self.params if option.name not in _LEFT_OUT]
        self.params = [*of_model, *_LOCAL, *_SERVER, *_SHARED]

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the sections of the help text."""
        sections: dict[str, list[tuple[str, str]]] = {"A model in this process": [], "A server": [], "Both": []}
        for option in self.get_params(context):
            is_shared = option.name in (*SHARED_OPTIONS, "help")
            section = (
                "Both" if is_shared else "A server" if option.name in SERVER_OPTIONS else "A model in this process"
            )
            if record := option.get_help_record(context):
                sections[section].append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def refuse_given(context: click.Context, names: Sequence[str], reason: str) -> None:
    """Refuses the first of these options that the command line has; the environment may have any.

    Raises:
        InputError: The command line has one.
    """
    for option in context.command.params:
        is_given = context.get_parameter_source(option.name or "") == click.core.ParameterSource.COMMANDLINE
        if is_given and option.name in names:
            raise InputError(f"{option.opts[0]} {reason}")
