"""What the commands print: text on stdout, everything else on stderr."""

from __future__ import annotations

import dataclasses
import io
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from pipelines.commands.progress import console_stages
from pipelines.config import PipelineConfig
from pipelines.errors import InputError
from pipelines.registry import Registry
from pipelines.sampling.params import SamplingParams

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipelines.context import TextContext
    from pipelines.stages import Stages
    from pipelines.text.prompts import EncodedPrompt, PromptEncoder
    from pipelines.text_generation import TextGenerationPipeline


def read_prompts(prompts: Sequence[str], stdin: TextIO | None) -> list[str]:
    """Returns the prompts, with `-` replaced by the text of standard input, which is None if it is closed.

    Of that a byte order mark and the last line end are dropped, and CRLF becomes LF.

    Raises:
        InputError: No prompt, an empty one, or input that can't be read or is not UTF-8.
    """
    if not prompts:
        raise InputError("no prompt: give --prompt TEXT, or --prompt - to read standard input")
    read = [_read(stdin).removesuffix("\n") if prompt == "-" else prompt for prompt in prompts]
    if "" in read:
        raise InputError("the prompt is empty: give some text")
    for prompt in read:
        if any("\ud800" <= character <= "\udfff" for character in prompt):  # Python's stand-in for a wrong byte
            raise InputError(f"the prompt is not UTF-8 text: {prompt[:40]!a}")
    return read


def _read(stdin: TextIO | None) -> str:
    try:
        data = stdin.buffer.read() if stdin else b""  # bytes: the locale may let wrong ones pass
        return data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise InputError(f"can't read standard input: {error.strerror}") from None


def set_output_encoding(stdout: TextIO, as_json: bool) -> None:
    """Makes JSON UTF-8 in every locale, and text what the locale says, with ? for characters that it lacks."""
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(encoding="utf-8" if as_json else None, errors="replace")


def generate_to_console(
    config: PipelineConfig,
    prompts: Sequence[str],
    params: SamplingParams,
    *,
    images: Sequence[str] = (),
    chat: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    as_json: bool = False,
    stats: bool = False,
) -> bool:
    """Completes the prompts and prints them in their order, the first unfinished one as it is made; whether all ended well.

    images: files, addresses or data URIs of what each prompt is about. chat: use the chat template; None: for
    instruction models. as_json: one object a prompt instead of text.
    """
    from pipelines.load import prepare_pipeline
    from pipelines.media.images import load_image

    set_output_encoding(sys.stdout, as_json)
    stages = console_stages(sys.stderr)
    config = dataclasses.replace(config, max_batch_size=min(config.max_batch_size, len(prompts)))
    loaded_images = [load_image(image, allow_private=True) for image in images]  # the user named them himself
    prepared = prepare_pipeline(config, stages)
    encoded = _encode(prepared.prompts, prompts, loaded_images, chat, chat_template_kwargs or {})
    if taken := prepared.sampling_defaults.describe(params):
        stages.note(f"sampling: {taken} (from generation_config.json; --temperature 0 or --generation-config none)")
    with prepared.load() as pipe:
        contexts = pipe.submit(encoded, params)  # which may compile what images need
        start = time.perf_counter()
        if as_json:
            _print_objects(pipe, prompts, contexts)
        else:
            _print_text(pipe, contexts)
        if stats:
            stages.note(_stats(pipe, time.perf_counter() - start))
    return _report_errors(contexts, stages)


def _encode(
    encoder: PromptEncoder,
    prompts: Sequence[str],
    images: Sequence[Image],
    chat: bool | None,
    chat_template_kwargs: Mapping[str, Any],
) -> list[EncodedPrompt]:
    """The prompts, each with all the images, as turns of a chat or as they are."""
    from pipelines.text.prompts import ImagePrompt

    if encoder.is_instruction_model if chat is None else chat:
        return [encoder.encode_chat(prompt, images, **chat_template_kwargs) for prompt in prompts]
    return [encoder.encode(ImagePrompt(prompt, images)) for prompt in prompts]


def list_architectures() -> None:
    """A table on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("architecture", "sizes", "takes", "on CPU", "on GPU", "example models", box=box.SIMPLE)
    for name, record in sorted(Registry.load().architectures.items()):
        encodings = ["\n".join(record.encodings.get(kind, ())) or "-" for kind in ("cpu", "gpu")]
        table.add_row(
            name, record.sizes, " and ".join(record.input_modalities), *encodings, "\n".join(record.example_repo_ids)
        )
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def _print_text(pipe: TextGenerationPipeline, contexts: Sequence[TextContext]) -> None:
    """Each text as it comes; the ones after it are made meanwhile and wait for their turn."""
    for context in contexts:
        for chunk in pipe.follow(context):
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
        sys.stdout.write("\n")


def _print_objects(pipe: TextGenerationPipeline, prompts: Sequence[str], contexts: Sequence[TextContext]) -> None:
    for prompt, context in zip(prompts, contexts, strict=True):
        output = dataclasses.asdict(pipe.finish(context))
        output["error"] = None if context.error is None else _describe(context.error)
        print(json.dumps({"prompt": prompt, **output}, ensure_ascii=False), flush=True)


def _report_errors(contexts: Sequence[TextContext], stages: Stages) -> bool:
    """A line for each request that failed; whether there was none."""
    for number, context in enumerate(contexts, 1):
        if context.error is not None:
            stages.note(f"error: prompt {number}: {_describe(context.error)}")
    return all(context.error is None for context in contexts)


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _stats(pipe: TextGenerationPipeline, seconds: float) -> str:
    """One line: prefill and decode speed, memory, preemptions if there were any."""
    stats, preemptions = pipe.engine.stats, pipe.engine.scheduler.num_preemptions
    parts = [
        f"prefill {stats.num_prefill_tokens} tokens, {stats.num_prefill_tokens / max(stats.prefill_s, 1e-9):.1f}/s",
        f"decode {stats.num_decode_tokens} tokens, {stats.num_decode_tokens / max(stats.decode_s, 1e-9):.1f}/s",
        f"{seconds:.2f} s in all",
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB",
    ]
    return "; ".join(parts + [f"{preemptions} preemptions"] * bool(preemptions))
