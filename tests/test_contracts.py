"""The rules of the house: imports that run one way, settings that are read, names and options that stay."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import distribution
from pathlib import Path

import click
import pytest

import cli
from pipelines.config import PipelineConfig
from pipelines.loading.encodings import ENCODINGS
from pipelines.registry import ENTRY_POINT_GROUP, Registry, SupportedArchitecture

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
LOWER_ROOMS = {"loading", "sampling", "media", "text", "engine"}
FACES = {"load", "text_generation"}  # the modules that users of `pipelines` call
ROOMS = {  # of `pipelines`, with what each may import of the other rooms and of the faces
    "native": set(),
    "loading": {"native"},
    "text": set(),
    "media": set(),
    "sampling": {"native", "text"},
    "engine": {"sampling", "text"},
    "serve": LOWER_ROOMS | FACES,
    "benchmark": LOWER_ROOMS | FACES | {"native"},
    "commands": LOWER_ROOMS | FACES | {"serve", "benchmark"},
}
SHARED_FOLDERS = {"layers": {"layers"}, "decoder": {"decoder", "layers"}}  # of `architectures`, and what they import
TEXT_MODEL_OF = {"gemma3_multimodal": "gemma3"}
MAX_FUNCTION_LINES = 39

EXPORTED = {
    "pipelines": """
        GenerationOutput ImagePrompt InputError PipelineConfig SamplingParams TextChunk TextGenerationPipeline
        load_image load_pipeline
    """,
    "kv_cache": """
        CachePlan KVCacheManager KVCacheParams PageGroup PageHashes PagePool PageTable RequestPages StepInputs
        advance format_bytes plan_cache to_device
    """,
    "architectures.gemma3": "Gemma3Config Gemma3Inputs Gemma3Model",
    "architectures.gemma3_multimodal": "",
    "architectures.gemma4": "Gemma4Config Gemma4Inputs Gemma4Model",
    "architectures.llama3": "Llama3Config Llama3Inputs Llama3Model",
    "architectures.qwen3": "Qwen3Config Qwen3Inputs Qwen3Model",
}
MODEL_OPTIONS = """
    --model --weight-path --revision --max-length --max-batch-size --max-batch-tokens --devices
    --quantization-encoding --head-encoding --activation-encoding --weight-cache/--no-weight-cache
    --artifacts --kv-cache-memory --device-memory-utilization --kv-cache-dtype --generation-config
    --custom-architectures --trust-remote-code
"""
SET_BY_TESTS = ("--max-length", "--max-batch-size", "--generation-config")  # of a benchmark
OPTIONS = {
    "generate": f"""
        {MODEL_OPTIONS} --prompt --image --chat/--raw --chat-template --chat-template-kwargs --max-new-tokens
        --temperature --top-k --top-p --min-p --repetition-penalty --presence-penalty --frequency-penalty
        --seed --stop --skip-special-tokens/--show-special-tokens --json --stats
    """,
    "verify": f"{MODEL_OPTIONS} --prompt --length --tolerance",
    "serve": f"""
        {MODEL_OPTIONS} --host --port --api-key --served-model-name --max-queue-size --request-timeout
        --max-request-bytes --shutdown-timeout --cors-origin --allowed-image-hosts --chat-template --reasoning-parser
        --log-level --log-format
    """,
    "benchmark": f"""
        {" ".join(name for name in MODEL_OPTIONS.split() if name not in SET_BY_TESTS)}
        --prompt-length --generate-length --depth --batch-size --repetitions --markdown
        --url --api-key --endpoint --num-requests --request-rate --concurrency --prompt-tokens --output-tokens
        --prompts --shared-prefix-tokens --seed --warmup --ignore-eos/--no-ignore-eos --timeout --extra-body --plot
        --json
    """,
    "cache": "--clear names",
    "compile": """
        --model --weight-path --revision --devices --quantization-encoding --head-encoding --activation-encoding
        --kv-cache-dtype --custom-architectures --trust-remote-code --target --output
    """,
    "list": "",
}


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


def test_rooms_import_no_room_that_stands_on_them() -> None:
    wrong = []
    for module in (module for module in MODULES if module.startswith("pipelines.")):
        room = module.split(".")[1]
        used = {name.split(".")[1] for name in imports(module) if name.startswith("pipelines.")} - {room}
        allowed = ROOMS.get(room, LOWER_ROOMS | FACES)
        wrong += [(module, name) for name in used & (ROOMS.keys() | FACES) - allowed]
    assert not wrong
    folders = {path.parent.name for path in (ROOT / "pipelines").glob("*/__init__.py")}
    assert folders <= ROOMS.keys(), "say what a new room may import"


def test_the_load_generator_knows_nothing_of_what_it_measures() -> None:
    """It speaks HTTP alone, so that numbers of different servers compare; a model in this process is `local*.py`."""
    own = [m for m in MODULES if m.startswith("pipelines.benchmark.") and not m.split(".")[2].startswith("local")]
    assert len(own) > 8
    used = {name for module in own for name in imports(module) if name.startswith(("pipelines.", "kv_cache"))}
    assert not [name for name in used if name.split(".")[1] not in ("benchmark", "errors")]


def test_no_architecture_imports_another() -> None:
    wrong = []
    for module in (module for module in MODULES if module.startswith("architectures.")):
        own = module.split(".")[1]
        allowed = SHARED_FOLDERS.get(own) or {*SHARED_FOLDERS, own, TEXT_MODEL_OF.get(own, own)}
        used = {name.split(".")[1] for name in imports(module) if name.startswith("architectures.")}
        wrong += [(module, name) for name in used - allowed]
    assert not wrong


def comparisons(code: ast.AST) -> Iterator[tuple[ast.cmpop, ast.expr]]:
    """Each operator of a comparison with each of the expressions that are compared."""
    for node in ast.walk(code):
        if isinstance(node, ast.Compare):
            yield from ((op, side) for op in node.ops for side in (node.left, *node.comparators))


def identity_of_enum_members(code: ast.AST) -> list[str]:
    """`x is Enum.MEMBER`: false for the member of an enum that another package has in its place."""
    return [
        ast.unparse(side)
        for op, side in comparisons(code)
        if isinstance(op, ast.Is | ast.IsNot) and isinstance(side, ast.Attribute) and side.attr.isupper()
    ]


def names_of_encodings(code: ast.AST) -> list[str]:
    """Comparisons and cases with the name of an encoding, alone or in a tuple, list or set."""
    compared = [side for _, side in comparisons(code)]
    compared += [node.value for node in ast.walk(code) if isinstance(node, ast.MatchValue)]
    constants = [node for side in compared for node in ast.walk(side) if isinstance(node, ast.Constant)]
    return [ast.unparse(node) for node in constants if node.value in ENCODINGS]


@pytest.mark.parametrize(
    ("code", "identities", "encodings"),
    [
        ("mode is ReturnLogits.ALL", 1, 0),
        ("a if config.mode is not pipeline_model.ReturnLogits.ALL else b", 1, 0),
        ("mode == ReturnLogits.ALL or mode is None or mode is self.mode", 0, 0),
        ("name == 'float32'", 0, 1),
        ("4 if encoding in ('float32', 'bfloat16') else 2", 0, 2),
        ("match name:\n    case 'bfloat16' | 'q': pass", 0, 1),
        ("names = ['float32', 'bfloat16']; bytes = {'float32': 4}", 0, 0),
    ],
)
def test_comparisons_are_found(code: str, identities: int, encodings: int) -> None:
    tree = ast.parse(code)
    assert (len(identity_of_enum_members(tree)), len(names_of_encodings(tree))) == (identities, encodings)


def test_members_of_enums_are_compared_by_value() -> None:
    found = {module: identity_of_enum_members(tree_of(module)) for module in MODULES}
    assert not {module: names for module, names in found.items() if names}


def test_encodings_are_told_apart_by_their_records_alone() -> None:
    outside = [module for module in MODULES if not module.startswith("pipelines.loading.encodings")]
    found = {module: names_of_encodings(tree_of(module)) for module in outside}
    assert not {module: names for module, names in found.items() if names}


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    docstring = function.body[0] if ast.get_docstring(function, clean=False) is not None else None
    spans = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in (function, docstring) if node]
    return spans[0] - sum(spans[1:])


def test_functions_are_short() -> None:
    functions = {
        (module, node.name): num_lines(node)
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(functions) > 500
    assert not {name: lines for name, lines in functions.items() if lines > MAX_FUNCTION_LINES}


def public_methods(module: str) -> Iterator[tuple[type, str]]:
    """The methods and properties that the public classes of a module define."""
    loaded = importlib.import_module(module)
    for node in tree_of(module).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            functions = [child.name for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)]
            yield from ((getattr(loaded, node.name), name) for name in functions if not name.startswith("_"))


def test_public_methods_have_docstrings_of_their_own_or_inherited_ones() -> None:
    """ruff sees to modules, classes and functions; it can't tell that a method overrides a documented one."""
    methods = [method for module in MODULES for method in public_methods(module)]
    assert len(methods) > 200
    assert not [f"{cls.__name__}.{name}" for cls, name in methods if not inspect.getdoc(getattr(cls, name))]


def names_read(config: type, start: set[str]) -> set[str]:
    """The attributes of a configuration that are read, from those in `start` on: methods and properties read others."""
    bodies: dict[str, list[ast.AST]] = {}
    for base in (base for base in config.__mro__ if base.__module__ in MODULES):
        for node in tree_of(base.__module__).body:
            if isinstance(node, ast.ClassDef) and node.name == base.__name__:
                for child in node.body:
                    bodies.setdefault(getattr(child, "name", ""), []).append(child)
    found, todo = set(start), list(start)
    while todo:
        names = {name for body in bodies.get(todo.pop(), []) for name in attributes_read(body, of=("self",))}
        todo += names - found
        found |= names
    return found


@pytest.mark.parametrize("record", Registry.load().architectures.values(), ids=lambda record: record.name)
def test_every_field_of_an_architectures_config_is_read(record: SupportedArchitecture) -> None:
    """By the graph, by what the framework asks of a configuration, or by the check that refuses values."""
    graphs = [record.config.__module__.replace("model_config", "graph"), "architectures.decoder.graph"]
    start = set().union(*(attributes_read(tree_of(graph), of=("config",)) for graph in graphs))
    read = names_read(record.config, start | {"get_max_seq_len", "get_kv_params", "refuse_unsupported"})
    unread = {field.name for field in fields(record.config)} - read
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


def test_exported_names_stay() -> None:
    """Somebody else's code has them: a name that goes, or a new one, is a line in the changelog."""
    families = {f"architectures.{path.parent.name}" for path in (ROOT / "architectures").glob("*/arch.py")}
    assert EXPORTED.keys() == {"pipelines", "kv_cache"} | families
    exported = {name: getattr(importlib.import_module(name), "__all__", []) for name in EXPORTED}
    assert {name: sorted(names) for name, names in exported.items()} == {
        n: sorted(e.split()) for n, e in EXPORTED.items()
    }


def test_the_options_of_the_commands_stay() -> None:
    def spelling(option: click.Parameter) -> str:
        return "/".join((*option.opts, *option.secondary_opts))

    found = {name: sorted(map(spelling, command.params)) for name, command in cli.commands.commands.items()}
    assert found == {name: sorted(options.split()) for name, options in OPTIONS.items()}


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import pipelines

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipelines.nothing


@pytest.mark.parametrize("module", ["pipelines", "cli", "pipelines.commands.generate", "pipelines.registry"])
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
