"""A chat template in place of the checkpoint's: it is checked before anything is loaded, and used everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Caller, Result
from published import FOLDERS

from pipelines.config import PipelineConfig
from pipelines.errors import InputError
from pipelines.load import prepare_pipeline
from pipelines.loading.checkpoint import DEMO_FOLDER
from pipelines.text.chat_template import MAX_BYTES, check_chat_template, read_chat_template
from pipelines.text.parsers import answer_format
from pipelines.text.tokenizer import TextTokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[me]{% endif %}"
)
TEMPLATES = [path for folder in FOLDERS.values() if (path := folder / "chat_template.jinja").exists()]
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    return Caller(capsys, monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "template.jinja"


def tokenizer(chat_template: str | None) -> TextTokenizer:
    return TextTokenizer.from_pretrained(DEMO_FOLDER, chat_template=chat_template)


def test_it_replaces_the_checkpoints() -> None:
    own, given = tokenizer(None), tokenizer(TEMPLATE)
    assert given.render_chat(MESSAGES) == "[user]hi[me]" != own.render_chat(MESSAGES)
    assert own.decode(own.encode_chat(MESSAGES)) != given.decode(given.encode_chat(MESSAGES)) == "[user]hi[me]"
    assert given.has_chat_template and given.chat_template == TEMPLATE != own.chat_template


def test_the_format_of_answers_and_the_tokens_of_turns_follow_it() -> None:
    thinking = TEMPLATE + "{# <think> </think> <tool_call> #}"
    assert answer_format(tokenizer(TEMPLATE).chat_template).reasoning is None
    assert answer_format(tokenizer(thinking).chat_template).reasoning is not None
    (turn,) = tokenizer(None).encode("<start_of_turn>", add_special_tokens=False)
    assert tokenizer(None).decode([turn]) == ""
    assert tokenizer(TEMPLATE).decode([turn]) == "<start_of_turn>", "no frame of a turn any more"


def test_a_run_with_a_template_is_a_chat_also_with_a_base_model() -> None:
    prepared = prepare_pipeline(PipelineConfig(chat_template=TEMPLATE))
    prompts = prepared.prompts
    assert prompts.is_instruction_model and not prepare_pipeline(PipelineConfig()).prompts.is_instruction_model
    assert prompts.tokenizer.decode(prompts.encode_chat("hi").tokens) == "[user]hi[me]"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.parent.name)
def test_the_published_ones_pass(path: Path) -> None:
    check_chat_template(read_chat_template(path))


@pytest.mark.parametrize(
    "text",
    [
        "{% generation %}{{ messages }}{% endgeneration %}",
        "{% for m in messages %}{% if m %}{% continue %}{% endif %}{% break %}{% endfor %}",
        "{{ raise_exception('no') }}{{ strftime_now('%d') }}{{ messages | tojson(indent=2) }}",
    ],
)
def test_what_transformers_adds_to_jinja_is_known(text: str) -> None:
    check_chat_template(text)
    assert PipelineConfig(chat_template=text).chat_template == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no expression"),
        ("template.jinja", "has no expression"),
        ("a\n{{ messages", "in line 2: "),
        ("{% for m in messages %}", "in line 1: "),
        ("{{ messages | nofilter }}", "nofilter"),
        ("{% generation %}{{ messages }}", "in line 1: "),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "can't be compiled"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "can't be compiled"),
    ],
    ids=range(8),
)
def test_what_is_no_template_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=r"^chat_template \(--chat-template\) ") as caught:
        PipelineConfig(chat_template=text)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff\xfe{{", "not UTF-8"), (b"{{ 1 }}" * MAX_BYTES, "larger than"), (b"{{", "wrong syntax"), (b"", "no expr")],
    ids=range(4),
)
@pytest.mark.parametrize("command", ["serve", "generate"])
def test_a_file_that_is_no_template_is_one_line(
    command: str, content: bytes, reason: str, call: Caller, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_bytes(content)
    assert reason in refused(command, file, call, monkeypatch).error()


@pytest.mark.parametrize("name", ["missing.jinja", ".", "a\0b", "~nobody-there/a.jinja"])
@pytest.mark.parametrize("command", ["serve", "generate"])
def test_a_file_that_cant_be_read_is_one_line(
    command: str, name: str, call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = name if name.startswith("~") else tmp_path / name
    assert "can't read --chat-template" in refused(command, path, call, monkeypatch).error()


def refused(command: str, path: Any, call: Caller, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Runs a command that must not get as far as its own module."""

    def begin(*_: Any, **__: Any) -> None:
        raise AssertionError("it has begun")

    name = {"serve": "serve_from_console", "generate": "generate_to_console"}[command]
    monkeypatch.setattr(f"pipelines.commands.{command}.{name}", begin)
    return call(command, "--chat-template", str(path))


def test_the_file_of_the_option_is_read(call: Caller, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("\ufeff" + TEMPLATE, encoding="utf-8")
    configs: list[PipelineConfig] = []
    monkeypatch.setattr("pipelines.commands.serve.serve_from_console", lambda config, **_: configs.append(config))
    assert call("serve", "--chat-template", str(file)).code == 0
    assert call("serve").code == 0
    assert [config.chat_template for config in configs] == [TEMPLATE, None]


def test_nothing_heavy_is_imported_before_it_is_checked(file: Path) -> None:
    file.write_text("{{ messages")
    code = "import cli, json, sys\ntry: cli.main(sys.argv[1:])\nfinally: print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code, "serve", "--chat-template", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "wrong syntax in line 1" in done.stderr and done.stderr.count("\n") == 1
    heavy = {"max", "transformers", "numpy", "huggingface_hub", "fastapi", "uvicorn"}
    assert not heavy & set(json.loads(done.stdout))
