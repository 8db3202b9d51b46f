"""The `pipelines generate` command: text on stdout, everything else on stderr."""

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
from pipelines.errors import InputError, naming_prompt
from pipelines.sampling.params import SamplingParams

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipelines.context import TextContext
    from pipelines.stages import Stages
    from pipelines.text.prompts import EncodedPrompt, PromptEncoder
    from pipelines.text_generation import TextGenerationPipeline


def read_prompts(prompts: Sequence[str], stdin: TextIO | None) -> list[str]:
    """Returns the prompts, with `-` replaced by the text of standard input, without byte order mark and last line end.

    Args:
        prompts: Texts, and `-` for standard input, in which CRLF becomes LF.
        stdin: Standard input; None if it is closed.

    Raises:
        InputError: There is no prompt, one is empty, or input can't be read or is not UTF-8.
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
    """Sets the encoding: UTF-8 in every locale for JSON, that of the locale for text, with ? for other characters."""
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
    """Completes the prompts and prints their texts in order, the first unfinished one as it is generated.

    `images` are files, addresses or data URIs, for each prompt; `chat` None uses the template of instruction models.

    Returns:
        Whether no request has failed.
    """
    from pipelines.load import prepare_pipeline
    from pipelines.media.images import load_image
    from pipelines.without_torch import import_transformers_without_torch

    set_output_encoding(sys.stdout, as_json)
    stages = console_stages(sys.stderr)
    config = dataclasses.replace(config, max_batch_size=min(config.max_batch_size, len(prompts)))
    loaded_images = [load_image(image, allow_private=True) for image in images]  # named by the user of this machine
    import_transformers_without_torch(config)
    prepared = prepare_pipeline(config, stages)
    encoded = _encode(prepared.prompts, prompts, loaded_images, chat, chat_template_kwargs or {})
    if taken := prepared.sampling_defaults.describe(params):
        stages.note(f"sampling: {taken} (from generation_config.json; --temperature 0 or --generation-config none)")
    with prepared.load() as pipe:
        contexts = pipe.submit(encoded, params)  # this may compile the graphs for images
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
    """Encodes the prompts, each with all the images, as turns of a chat or as they are."""
    from pipelines.text.prompts import ImagePrompt

    is_chat = encoder.is_instruction_model if chat is None else chat
    encoded = []
    for number, prompt in enumerate(prompts, 1):
        with naming_prompt(number, len(prompts)):
            if is_chat:
                encoded.append(encoder.encode_chat(prompt, images, **chat_template_kwargs))
            else:
                encoded.append(encoder.encode(ImagePrompt(prompt, images)))
    return encoded


def _print_text(pipe: TextGenerationPipeline, contexts: Sequence[TextContext]) -> None:
    """Prints each text as it is generated; later ones are generated at the same time and printed in their turn."""
    for context in contexts:
        for chunk in pipe.iter_chunks(context):
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()  # before what follows on stderr


def _print_objects(pipe: TextGenerationPipeline, prompts: Sequence[str], contexts: Sequence[TextContext]) -> None:
    for prompt, context in zip(prompts, contexts, strict=True):
        output = dataclasses.asdict(pipe.finish(context))
        output["error"] = None if context.error is None else _describe(context.error)
        print(json.dumps({"prompt": prompt, **output}, ensure_ascii=False), flush=True)


def _report_errors(contexts: Sequence[TextContext], stages: Stages) -> bool:
    """Prints a line for each request that failed; True if there is none."""
    for number, context in enumerate(contexts, 1):
        if context.error is not None:
            stages.note(f"error: prompt {number}: {_describe(context.error)}")
    return all(context.error is None for context in contexts)


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _stats(pipe: TextGenerationPipeline, seconds: float) -> str:
    """Formats one line: prefill and decode speed, memory, preemptions if there were any."""
    stats, preemptions = pipe.engine.stats, pipe.engine.scheduler.num_preemptions
    parts = [
        f"prefill {stats.num_prefill_tokens} tokens, {stats.num_prefill_tokens / max(stats.prefill_s, 1e-9):.1f}/s",
        f"decode {stats.num_decode_tokens} tokens, {stats.num_decode_tokens / max(stats.decode_s, 1e-9):.1f}/s",
        f"{seconds:.2f} s in all",
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB",
    ]
    parts += [f"{preemptions} preemptions"] * bool(preemptions)
    return "; ".join(part for part in (*parts, pipe.model.describe_products()) if part)
