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

    from pipelines.engine.engine import Request
    from pipelines.text.prompts import EncodedPrompt, PromptEncoder
    from pipelines.text_generation import TextGenerationPipeline


def read_prompts(prompts: Sequence[str], stdin: TextIO | None) -> list[str]:
    """The prompts, with `-` replaced by standard input less its last line end.

    Raises:
        InputError: No prompt, an empty one, or input that is not UTF-8.
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
    if isinstance(stdin, io.TextIOWrapper):
        stdin.reconfigure(encoding="utf-8", errors="strict")  # the locale may let wrong bytes pass
    try:
        return stdin.read() if stdin else ""
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text ({error.reason} at byte {error.start})") from None


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
) -> None:
    """Completes the prompts and prints them in their order, the first unfinished one as it is made.

    images: files, addresses or data URIs of what each prompt is about. chat: use the chat template; None: for
    instruction models. as_json: one object a prompt instead of text.
    """
    from pipelines.load import prepare_pipeline
    from pipelines.media.images import load_image

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows ? for it
    stages = console_stages(sys.stderr)
    config = dataclasses.replace(config, max_batch_size=min(config.max_batch_size, len(prompts)))
    loaded_images = [load_image(image, allow_private=True) for image in images]  # the user named them himself
    prepared = prepare_pipeline(config, stages)
    encoded = _encode(prepared.prompts, prompts, loaded_images, chat, chat_template_kwargs or {})
    with prepared.load() as pipe:
        start = time.perf_counter()
        requests = pipe.submit(encoded, params)
        if as_json:
            _print_objects(pipe, prompts, requests)
        else:
            _print_text(pipe, requests)
        if stats:
            stages.note(_stats(pipe, time.perf_counter() - start))


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
        table.add_row(name, record.sizes, record.takes, *encodings, "\n".join(record.example_repo_ids))
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def verify_to_console(config: PipelineConfig, prompts: Sequence[str], tolerance: float | None) -> bool:
    """Prints a table of comparisons with transformers, a row a prompt; whether all are within the tolerance.

    tolerance: of the largest logit; None: 1e-4 where activations are float32, 5e-2 where they are bfloat16.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipelines.commands.verify import verify

    if tolerance is None:
        tolerance = 1e-4 if config.device_kind == "cpu" else 5e-2
    comparisons = verify(config, prompts, console_stages(sys.stderr))
    columns = ("tokens", "max diff", "mean diff", "top-1", "KL", "worst position", "greedy")
    table = Table(box=box.SIMPLE)
    for column in columns:
        table.add_column(column, justify="right")
    for c in comparisons:
        differences = (f"{value:.1e}" for value in (c.max_difference, c.mean_difference))
        greedy = f"{c.num_same_greedy}/{c.num_greedy}"
        row = (*differences, f"{c.top1_agreement:.2%}", f"{c.kl:.1e}", str(c.worst_position), greedy)
        table.add_row(str(c.num_tokens), *row)
    is_equal = all(comparison.max_difference <= tolerance for comparison in comparisons)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"{'equal' if is_equal else 'NOT equal'} to transformers: logits within {tolerance:g} of the largest")
    return is_equal


def _print_text(pipe: TextGenerationPipeline, requests: Sequence[Request]) -> None:
    """Each text as it comes; the ones after it are made meanwhile and wait for their turn."""
    for request in requests:
        for chunk in pipe.follow(request):
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
        sys.stdout.write("\n")


def _print_objects(pipe: TextGenerationPipeline, prompts: Sequence[str], requests: Sequence[Request]) -> None:
    for prompt, request in zip(prompts, requests, strict=True):
        output = dataclasses.asdict(pipe.finish(request))
        print(json.dumps({"prompt": prompt, **output}, ensure_ascii=False), flush=True)


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
