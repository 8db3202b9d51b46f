"""Chat templates that are given in a file, in place of the checkpoint's."""

from __future__ import annotations

from pathlib import Path

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.errors import InputError

MAX_BYTES = 2**20
"""Size of the largest template; published ones have some kilobytes."""


class _Generation(Extension):
    """The block `{% generation %}`, in which templates put what the model wrote; transformers knows it."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Parses the block as what it has inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def read_chat_template(path: str | Path) -> str:
    """Reads a template, whose syntax PipelineConfig checks.

    Raises:
        InputError: The file can't be read, is too large, or is not UTF-8.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--chat-template {path} is not UTF-8 text (byte {error.start}): give a Jinja file") from None
    except (OSError, RuntimeError, ValueError) as error:  # not readable; "~nobody"; a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"can't read --chat-template {path}: {reason}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"--chat-template {path} is larger than {MAX_BYTES} bytes: give a Jinja file")
    return text


def check_chat_template(text: str) -> None:
    """Checks a template's syntax, with the extensions that transformers has for templates.

    Raises:
        InputError: It is not a Jinja template, or a text without anything of Jinja, such as the name of a file.
    """
    if "{{" not in text and "{%" not in text:
        raise InputError("chat_template (--chat-template) has no expression or statement of Jinja: give a template")
    environment = ImmutableSandboxedEnvironment(extensions=[_Generation, loopcontrols])
    try:
        environment.from_string(text)
    except TemplateSyntaxError as error:
        raise InputError(
            f"chat_template (--chat-template) has wrong syntax in line {error.lineno}: {error.message}"
        ) from None
    except Exception as error:  # it becomes a Python program, which may be too deep or too long
        raise InputError(f"chat_template (--chat-template) can't be compiled: {error}") from None
