"""The options that name and configure a model, which most commands have, and the configuration that they give."""

from __future__ import annotations

from typing import Any

import click

from pipelines.config import AUTO, GENERATION_CONFIGS, KV_CACHE_DTYPES, PipelineConfig, parse_memory
from pipelines.loading.encodings import ACTIVATION_ENCODINGS, ENCODINGS


def model_options(command: Any) -> Any:
    """Adds the options of the run, which become fields of PipelineConfig."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


CHAT_TEMPLATE = click.option("--chat-template", metavar="FILE", help="A Jinja template in place of the model's.")
_MODEL_OPTIONS = (
    click.option("--model", metavar="FOLDER|FILE.gguf|HUB_ID", help="The checkpoint.  [default: the bundled demo]"),
    click.option(
        "--weight-path",
        metavar="FILE.gguf",
        help="A GGUF file: on this machine, alone or beside the files of --model, or in its folder or repository.",
    ),
    click.option("--revision", metavar="NAME", help="A branch, tag or commit of the model on the hub."),
    click.option(
        "--max-length", type=int, help="Tokens of prompt and output.  [default: the model's limit, or what fits]"
    ),
    click.option("--max-batch-size", type=int, default=8, show_default=True, help="Prompts that run at once."),
    click.option(
        "--max-batch-tokens",
        type=int,
        help="Tokens of a step, of prompts and outputs together: fewer keep outputs flowing beside long prompts, more"
        " compute prompts faster.  [default: 512 on CPU, 2048 on GPU]",
    ),
    click.option(
        "--devices",
        default="cpu",
        show_default=True,
        metavar="cpu|gpu|gpu:0,1",
        help="GPUs that share the model, by their numbers.  [for tests: cpu:0,cpu:0 are shards on one CPU]",
    ),
    click.option("--quantization-encoding", type=click.Choice([AUTO, *ENCODINGS]), default=AUTO, show_default=True),
    click.option(
        "--head-encoding",
        type=click.Choice([AUTO, *ENCODINGS]),
        default=AUTO,
        show_default=True,
        help="Of the embedding and the head; auto: 8 bits where the other matrices have fewer.",
    ),
    click.option(
        "--activation-encoding",
        type=click.Choice([AUTO, *ACTIVATION_ENCODINGS]),
        default=AUTO,
        show_default=True,
        help="In products on CPU; auto: int8 with weights of 8 bits or fewer, or float32. bfloat16 needs such weights.",
    ),
    click.option(
        "--weight-cache/--no-weight-cache",
        "enable_weight_cache",
        default=True,
        show_default=True,
        help="Keep weights that are quantized while loading for the next start.",
    ),
    click.option(
        "--artifacts",
        type=click.Path(),
        metavar="FOLDER",
        help="Graphs that `pipelines compile` has compiled for this model and these devices.",
    ),
    click.option("--kv-cache-memory", metavar="SIZE", help="For example 2GiB.  [default: what the prompts may need]"),
    click.option(
        "--device-memory-utilization",
        type=float,
        default=0.9,
        show_default=True,
        metavar="SHARE",
        help="Of each GPU's memory, for weights, steps and cache.",
    ),
    click.option(
        "--kv-cache-dtype",
        type=click.Choice(KV_CACHE_DTYPES),
        default=AUTO,
        show_default=True,
        help="Type of keys and values: int8 takes a quarter of float32.  [auto: float32 on CPU, bfloat16 where "
        "products round activations to int8]",
    ),
    click.option(
        "--generation-config",
        type=click.Choice(GENERATION_CONFIGS),
        default=AUTO,
        show_default=True,
        help="Take sampling defaults from the checkpoint's generation_config.json, or none.",
    ),
    click.option("--custom-architectures", multiple=True, metavar="MODULE[:ATTR]", help="Architectures to add."),
    click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the checkpoint."),
)


def config_of(options: dict[str, Any]) -> PipelineConfig:
    """Creates the configuration from `model_options`, and --chat-template where there is one."""
    memory, template = options.get("kv_cache_memory"), options.get("chat_template")
    if template is not None:
        from pipelines.text.chat_template import read_chat_template

        options["chat_template"] = read_chat_template(template)
    return PipelineConfig(**options | {"kv_cache_memory": None if memory is None else parse_memory(memory)})


def take(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Removes some options and returns them; those that remain are fields of PipelineConfig."""
    return {name: options.pop(name) for name in names}
