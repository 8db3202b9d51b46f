"""The `pipelines` command."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import click

from pipelines.commands.benchmark_options import (
    LOCAL_OPTIONS,
    SERVER_OPTIONS,
    SHARED_OPTIONS,
    BenchmarkCommand,
    refuse_given,
)
from pipelines.commands.options import CHAT_TEMPLATE, config_of, model_options, take
from pipelines.commands.streams import OutputError, open_standard_streams
from pipelines.errors import InputError
from pipelines.sampling.params import SamplingParams


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    The exit code is 0 for success, also if the reader of stdout has closed it; 1 if stdout can't be written or the
    command has failed; 2, with one line on stderr, for input that can't be used; 130 for Ctrl-C.
    """
    open_standard_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        sys.exit(_run(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            click.echo(err=True)  # the shell's prompt starts on a line of its own, not after the ^C
        os._exit(130)  # a compilation in the background would keep an orderly exit waiting for minutes


def _run(arguments: list[str]) -> int:
    """Runs a command, flushes its output and returns the exit code."""
    code = 0
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
    except OutputError as error:
        return code if error.is_broken_pipe else _fail(str(error), code=1)
    return code


def _invoke(arguments: list[str]) -> int:
    """Runs a command and returns the exit code, without `commands.main`, whose handling of Ctrl-C and pipes differs."""
    try:
        with commands.make_context("pipelines", list(arguments)) as context:
            commands.invoke(context)
    except click.exceptions.Exit as done:  # --help, --version
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as help_text:
        click.echo(help_text.format_message(), err=True)
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "pipelines"
        return _fail(f"{error.format_message().rstrip('.')}: see {command} --help")
    except InputError as error:
        return _fail(str(error))
    return 0


def _fail(message: str, code: int = 2) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, so that the program can clean up; a second Ctrl-C ends it at once."""
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    raise KeyboardInterrupt


@click.group(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="graph-pipelines", prog_name="pipelines")
def commands() -> None:
    """Language-model pipelines on the MAX graph compiler."""


@commands.command()
@model_options
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="May be repeated; `-` reads standard input.")
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="FILE|URL",
    help="An image of the prompt; may be repeated.  Images precede the text, or replace <start_of_image> in it.",
)
@click.option(
    "--chat/--raw",
    default=None,
    help="Use the model's chat template, or the prompt as it is.  [default: chat for instruction models]",
)
@CHAT_TEMPLATE
@click.option(
    "--chat-template-kwargs",
    metavar="JSON",
    help="Variables of the chat template, for example '{\"enable_thinking\": false}'.",
)
@click.option("--max-new-tokens", type=int, default=256, show_default=True)
@click.option("--temperature", type=float, help="0 takes the likeliest token.  [default: the checkpoint's, or 0]")
@click.option("--top-k", type=int, help="Keep the k likeliest tokens; 0 keeps all.  [default: the checkpoint's, or 0]")
@click.option(
    "--top-p",
    type=float,
    help="Keep the likeliest tokens that make up this probability.  [default: the checkpoint's, or 1]",
)
@click.option(
    "--min-p", type=float, help="Drop tokens below this share of the likeliest one.  [default: the checkpoint's, or 0]"
)
@click.option("--repetition-penalty", type=float, help="[default: the checkpoint's, or 1]")
@click.option("--presence-penalty", type=float, default=0.0)
@click.option("--frequency-penalty", type=float, default=0.0)
@click.option("--seed", type=int, help="The same seed gives the same text.")
@click.option("--stop", multiple=True, metavar="TEXT", help="A string that ends the text; may be repeated.")
@click.option("--skip-special-tokens/--show-special-tokens", default=True, help="Whether control tokens are shown.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per prompt.")
@click.option("--stats", is_flag=True, help="Speed and memory on stderr at the end.")
def generate(**options: Any) -> None:
    """Complete prompts. The text goes to stdout as it is made, all else to stderr."""
    from pipelines.commands.generate import generate_to_console, read_prompts

    sampling = SamplingParams(**take(options, *_SAMPLING_OPTIONS))
    output = take(options, "images", "chat", "as_json", "stats")
    output["chat_template_kwargs"] = _json_object("--chat-template-kwargs", options.pop("chat_template_kwargs"))
    prompts = options.pop("prompts")
    config = config_of(options)
    if not generate_to_console(config, read_prompts(prompts, sys.stdin), sampling, **output):
        raise click.exceptions.Exit(1)


@commands.command()
@model_options
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="May be repeated.  [default: random tokens]")
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=int,
    metavar="N",
    help="A prompt of N random tokens; may be repeated.  [default: lengths around the sliding window]",
)
@click.option(
    "--tolerance",
    type=float,
    help="Fraction of the largest logit.  [default: 1e-4 on CPU, 5e-2 on GPU and with int8 activations]",
)
def verify(prompts: tuple[str, ...], lengths: tuple[int, ...], tolerance: float | None, **options: Any) -> None:
    """Compare a checkpoint's logits and greedy tokens with transformers in float64, which needs torch.

    Exits with 1 if a difference is larger than the tolerance, and larger than transformers' own float32 explains.
    """
    from pipelines.commands.verify_console import verify_to_console

    if not verify_to_console(config_of(options), prompts, lengths, tolerance):
        raise click.exceptions.Exit(1)


@commands.command()
@model_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=int, default=8000, show_default=True, help="0 takes any that is free.")
@click.option(
    "--api-key",
    envvar="PIPELINES_API_KEY",
    help="Asked of clients on all routes but /health, /ready and the chat page.",
)
@click.option("--served-model-name", "served_model_names", multiple=True, metavar="NAME", help="May be repeated.")
@click.option("--max-queue-size", type=int, default=512, show_default=True, help="Requests that may wait.")
@click.option(
    "--request-timeout", "request_timeout_s", type=float, default=3600.0, show_default=True, metavar="SECONDS"
)
@click.option("--max-request-bytes", type=int, default=32 * 2**20, show_default=True)
@click.option(
    "--shutdown-timeout", "shutdown_timeout_s", type=float, default=30.0, show_default=True, metavar="SECONDS"
)
@click.option("--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN", help="May be repeated; * for all.")
@click.option(
    "--allowed-image-hosts",
    multiple=True,
    metavar="HOST",
    help="Hosts of image addresses; may be repeated.  [default: none, data: URIs only]",
)
@CHAT_TEMPLATE
@click.option("--reasoning-parser", default="auto", show_default=True, help="none leaves thinking in the text.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def serve(**options: Any) -> None:
    """Serve a model to OpenAI-compatible clients."""
    from pipelines.commands.serve import serve_from_console

    serving = take(options, *_SERVE_OPTIONS)
    serve_from_console(config_of(options), **serving)


@commands.command(cls=BenchmarkCommand)
@model_options
@click.pass_context
def benchmark(context: click.Context, /, **options: Any) -> None:
    """Measure a model in this process, or, with --url, an OpenAI-compatible server.

    A model: how fast it processes prompts (pp) and generates (tg), after --depth tokens and in batches; these options
    may be repeated. A server: latency and throughput under load; the exit code is 1 if a request has failed.
    """
    from pipelines.commands.benchmark import benchmark_to_console
    from pipelines.commands.benchmark_local import benchmark_model_to_console

    server, shared = take(options, *SERVER_OPTIONS), take(options, *SHARED_OPTIONS)
    if server["url"] is None:
        refuse_given(context, SERVER_OPTIONS, "is for a server: give --url too, or leave it out")
        local = take(options, *LOCAL_OPTIONS)
        seed, as_json = shared.pop("seed"), shared.pop("as_json")
        benchmark_model_to_console(config_of(options | shared), seed=seed, as_json=as_json, **local)
        return
    refuse_given(context, tuple(options), "is for a model in this process: leave out it or --url")
    server["extra_body"] = _json_object("--extra-body", server["extra_body"])
    if code := benchmark_to_console(**server, **shared):
        raise click.exceptions.Exit(code)


@commands.command(name="compile")
@model_options
@click.option(
    "--target",
    metavar="cpu|cuda:ARCH|hip:ARCH",
    help="GPUs that need not be here, for example cuda:sm_90a.  [default: the devices of this machine]",
)
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="For --artifacts.")
def compile_command(target: str | None, output: Path, **options: Any) -> None:
    """Compile a model's graphs ahead of time, so that `--artifacts FOLDER` starts it without compiling."""
    from pipelines.commands.compile import compile_from_console

    compile_from_console(config_of(options), target, output)


# What the graphs don't depend on.
_NOT_COMPILED = (
    "artifacts",
    "enable_weight_cache",
    "max_length",
    "max_batch_size",
    "max_batch_tokens",
    "kv_cache_memory",
    "device_memory_utilization",
    "generation_config",
)
compile_command.params = [p for p in compile_command.params if p.name not in _NOT_COMPILED]


@commands.command(name="list")
def list_command() -> None:
    """Show the architectures, example models, and the encodings that each kind of device runs."""
    from pipelines.commands.list import list_architectures

    list_architectures()


@commands.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--clear", is_flag=True, help="Remove all entries, or those with these names or of these models.")
def cache(names: tuple[str, ...], clear: bool) -> None:
    """Show what is kept on disk: weights that were quantized while loading, compiled graphs and kernels."""
    from pipelines.commands.cache import clear_cache, show_cache

    if names and not clear:
        raise click.UsageError("names are for --clear")
    clear_cache(names) if clear else show_cache()


_SAMPLING_OPTIONS = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "skip_special_tokens",
)


_SERVE_OPTIONS = (
    "host",
    "port",
    "api_key",
    "served_model_names",
    "max_queue_size",
    "request_timeout_s",
    "max_request_bytes",
    "shutdown_timeout_s",
    "cors_origins",
    "allowed_image_hosts",
    "reasoning_parser",
    "log_level",
    "log_format",
)


def _json_object(option: str, text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{option} is '{text}': write a JSON object, {{\"name\": value}}")
    return value


if __name__ == "__main__":
    main()
