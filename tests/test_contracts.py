"""What holds the house together: who imports whom, no setting that nobody reads, names that can be imported."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import distribution
from pathlib import Path

import pytest

import cli
from pipelines.config import PipelineConfig
from pipelines.registry import ENTRY_POINT_GROUP, Registry

ROOT = Path(cli.__file__).parent
PACKAGES = ("kv_cache", "pipelines", "architectures")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "cli.py", *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))))
}
MAY_IMPORT = {
    "cli": {"cli", "pipelines"},
    "pipelines": {"pipelines", "kv_cache"},
    "kv_cache": {"kv_cache"},
    "architectures": {"architectures", "pipelines", "kv_cache"},
}
MAX_MODULES = ("graph", "nn", "engine", "driver", "dtype", "tree")
SHARED_FOLDERS = ("layers", "kernels")
TEXT_MODEL_OF = {"gemma3_multimodal": "gemma3"}


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imports(module: str) -> Iterator[str]:
    """Every name that a module imports, at its top or later, in full: "package.module.name"."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def attributes_read(code: ast.AST, of: tuple[str, ...] = ()) -> set[str]:
    """Names that occur as `something.name` and are not assigned to. of: only where something ends with one of these."""
    nodes = [node for node in ast.walk(code) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)]
    return {node.attr for node in nodes if not of or ast.unparse(node.value).split(".")[-1] in of}


def test_imports_run_one_way() -> None:
    wrong = [
        (module, name)
        for module in MODULES
        for name in imports(module)
        if name.split(".")[0] in MAY_IMPORT.keys() - MAY_IMPORT[module.split(".")[0]]
    ]
    assert not wrong


def test_of_max_only_the_lower_half_is_used() -> None:
    names = {(module, name) for module in MODULES for name in imports(module) if name.split(".")[0] == "max"}
    assert {name.split(".")[1] for _, name in names} >= {"graph", "nn", "driver"}  # they are found
    assert not [(module, name) for module, name in names if name.split(".")[1] not in MAX_MODULES]


def test_no_architecture_imports_another() -> None:
    wrong = []
    for module in (module for module in MODULES if module.startswith("architectures.")):
        own = module.split(".")[1]
        allowed = {*SHARED_FOLDERS, TEXT_MODEL_OF.get(own), own if own not in SHARED_FOLDERS else None}
        used = {name.split(".")[1] for name in imports(module) if name.startswith("architectures.")}
        wrong += [(module, name) for name in used - allowed]
    assert not wrong


@pytest.mark.parametrize("record", Registry.load().architectures.values(), ids=lambda record: record.name)
def test_every_field_of_an_architectures_config_is_read(record: object) -> None:
    config = record.config  # type: ignore[attr-defined]
    graph = config.__module__.replace("model_config", "graph")
    read = attributes_read(tree_of(graph), of=("config",)) | attributes_read(
        tree_of("architectures.decoder.graph"), of=("config",)
    )
    for base in (base for base in config.__mro__ if base.__module__ in MODULES):
        (own_code,) = (
            node
            for node in tree_of(base.__module__).body
            if isinstance(node, ast.ClassDef) and node.name == base.__name__
        )
        read |= attributes_read(own_code, of=("self",))
    unread = {field.name for field in fields(config)} - read
    assert not unread


def test_the_pipeline_config_is_small_and_every_field_is_read() -> None:
    names = [field.name for field in fields(PipelineConfig)]
    assert len(names) <= 20
    read = set().union(*(attributes_read(tree_of(module)) for module in MODULES if module != "pipelines.config"))
    # What no other module reads itself, it reads through a property.
    own = {"devices": "device_refs", "max_batch_tokens": "max_step_tokens"}
    unread = {own.get(name, name) for name in names} - read
    assert not unread


@pytest.mark.parametrize("module", [m for m in MODULES if "\n__all__ = " in MODULES[m].read_text()])
def test_public_names_can_be_imported(module: str) -> None:
    loaded = importlib.import_module(module)
    assert len(set(loaded.__all__)) == len(loaded.__all__)
    missing = object()
    assert not [name for name in loaded.__all__ if getattr(loaded, name, missing) is missing]


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import pipelines

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipelines.nothing


@pytest.mark.parametrize("module", ["pipelines", "cli", "pipelines.commands.console", "pipelines.registry"])
def test_what_the_command_line_imports_is_light(module: str) -> None:
    """`pipelines --help` and every error in an option would have to wait for it."""
    code = f"import json, sys, {module}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    heavy = {"max", "transformers", "torch", "numpy", "huggingface_hub", "rich", "kv_cache", "architectures"}
    assert not heavy & set(json.loads(output.stdout))


def test_the_package_offers_the_command_and_the_architectures() -> None:
    entry_points = distribution("graph-pipelines").entry_points
    (command,) = entry_points.select(group="console_scripts")
    assert (command.name, command.load()) == ("pipelines", cli.main)
    architectures = entry_points.select(group=ENTRY_POINT_GROUP)
    folders = {path.parent.name for path in (ROOT / "architectures").glob("*/arch.py")}
    assert {entry.name for entry in architectures} == folders
    assert all(record for entry in architectures for record in entry.load())
    assert Registry.load().problems == ()


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_say_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
