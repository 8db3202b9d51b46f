"""Architectures are found in installed packages and custom modules, and refuse what they can't do."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import InputError
from pipelines.registry import Registry, SupportedArchitecture, choose_encoding

MODULE = """
from pipelines.registry import SupportedArchitecture

def record(name, repo="org/{module}"):
    return SupportedArchitecture(name, (repo,), {{"cpu": ("float32",)}}, object, object, str)

ARCHITECTURES = [record("{name}"), record("{name}Vision")]
one = record("{name}")
wrong = 3
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of imports: what is written here is as good as installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write_module(site: Path, module: str, name: str) -> None:
    (site / f"{module}.py").write_text(MODULE.format(module=module, name=name))


def install(site: Path, distribution: str, target: str) -> None:
    info = site / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pipelines.architectures]\n{distribution} = {target}\n")


def architecture(encodings: dict[str, tuple[str, ...]]) -> SupportedArchitecture:
    return SupportedArchitecture("ThingForCausalLM", ("org/thing",), encodings, object, object, {})


@pytest.mark.parametrize(("attribute", "names"), [("one", {"Foo"}), ("ARCHITECTURES", {"Foo", "FooVision"})])
def test_an_installed_package_brings_one_or_several(site: Path, attribute: str, names: set[str]) -> None:
    write_module(site, f"foo_{attribute.lower()}", "Foo")
    install(site, f"foo_{attribute.lower()}", f"foo_{attribute.lower()}:{attribute}")
    assert names <= set(Registry.load().architectures)
    assert Registry.load().find(["Unheard", "Foo"]).name == "Foo"


def test_a_custom_architecture_takes_the_place_of_an_installed_one(site: Path) -> None:
    write_module(site, "bar_installed", "Bar")
    write_module(site, "bar_custom", "Bar")
    install(site, "bar_installed", "bar_installed:one")
    assert Registry.load().find(["Bar"]).example_repo_ids == ("org/bar_installed",)
    for custom in ("bar_custom", "bar_custom:one", "bar_custom:ARCHITECTURES"):
        assert Registry.load([custom]).find(["Bar"]).example_repo_ids == ("org/bar_custom",)


def test_a_broken_installed_package_is_named_only_when_something_is_missing(site: Path) -> None:
    write_module(site, "sound", "Sound")
    install(site, "sound", "sound:one")
    install(site, "broken", "module_that_is_gone:ARCHITECTURES")
    registry = Registry.load()
    assert registry.find(["Sound"]).name == "Sound"
    with pytest.raises(InputError, match="module_that_is_gone"):
        registry.find(["Other"])


def test_an_unsupported_architecture_names_the_supported_ones() -> None:
    registry = Registry({"A": architecture({}), "B": architecture({})})
    with pytest.raises(InputError, match=r"'BertModel', 'X' is not supported; supported: A, B$"):
        registry.find(["BertModel", "X"])
    with pytest.raises(InputError, match="names none"):
        registry.find([])


@pytest.mark.parametrize(
    ("custom", "expected"),
    [
        ("no_such_module", "No module named 'no_such_module'"),
        ("baz:absent", "absent"),
        ("baz:wrong", "not SupportedArchitecture"),
        ("raises", "ZeroDivisionError"),
        ("", "can't be loaded"),
    ],
)
def test_a_custom_architecture_that_cannot_be_loaded(site: Path, custom: str, expected: str) -> None:
    write_module(site, "baz", "Baz")
    (site / "raises.py").write_text("1 / 0")
    with pytest.raises(InputError, match=expected) as caught:
        Registry.load([custom])
    assert f"'{custom}'" in str(caught.value)


@pytest.mark.parametrize(
    ("device_kind", "requested", "checkpoint_dtype", "chosen"),
    [
        ("cpu", "auto", "bfloat16", "float32"),  # what the device runs
        ("cpu", "auto", None, "float32"),
        ("gpu", "auto", "float32", "float32"),  # what the checkpoint holds
        ("gpu", "auto", "float16", "bfloat16"),
        ("gpu", "float32", "bfloat16", "float32"),  # what was asked for
    ],
)
def test_encoding_choice(device_kind: str, requested: str, checkpoint_dtype: str | None, chosen: str) -> None:
    thing = architecture({"cpu": ("float32",), "gpu": ("bfloat16", "float32")})
    assert choose_encoding(thing, device_kind, requested, checkpoint_dtype) == chosen


def test_an_encoding_that_the_device_cannot_run_names_those_it_can() -> None:
    thing = architecture({"cpu": ("float32", "q4_0"), "gpu": ()})
    with pytest.raises(InputError, match=r"bfloat16 on cpu; choose one of: float32, q4_0$"):
        choose_encoding(thing, "cpu", "bfloat16", None)
    with pytest.raises(InputError, match=r"does not run on gpu; it runs on: cpu$"):
        choose_encoding(thing, "gpu", "auto", None)
