"""The files in deploy/: their commands exist, their options are the command's, and the limits fit each other."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click import Context
from serving import serving

import cli
from pipelines.serve.middleware import OPEN_PATHS

ROOT = Path(cli.__file__).parent
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENVIRONMENT = {"${MODEL}": "google/gemma-3-1b-it", "$OPTIONS": "--max-batch-size 16"}


def instructions(file: str = "Dockerfile") -> list[tuple[str, str]]:
    """Name and arguments of each instruction of a Dockerfile."""
    lines = [line for line in (DEPLOY / file).read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines()) if name]


def last(name: str, file: str = "Dockerfile") -> str:
    return [rest for each, rest in instructions(file) if each == name][-1]


def unit() -> dict[str, list[str]]:
    """The settings of the systemd unit, each with all its values."""
    settings: dict[str, list[str]] = {}
    for line in (DEPLOY / "graph-pipelines.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def parsed(command: list[str], expected: str = "serve") -> Context:
    """Parses a command line of `pipelines`, and runs nothing."""
    program, name, *options = command
    assert Path(program).name == next(iter(PROJECT["project"]["scripts"])) and name == expected
    return cli.commands.commands[name].make_context(name, options)


def test_the_container_serves_to_the_outside_on_the_port_that_it_names() -> None:
    options = parsed([*json.loads(last("ENTRYPOINT")), "--model", "google/gemma-3-1b-it"]).params
    assert options["host"] == "0.0.0.0" and options["model"] == "google/gemma-3-1b-it"
    assert str(options["port"]) == last("EXPOSE") and f":{options['port']}/" in last("HEALTHCHECK")


def test_the_compiled_image_serves_from_what_it_compiles() -> None:
    file = "Dockerfile.compiled"
    command = last("RUN", file).partition(" pipelines ")[2].replace("$MODEL", "m").replace("$OPTIONS", "--devices cpu")
    compiled = parsed(["pipelines", *shlex.split(command)], "compile").params
    served = parsed([*json.loads(last("ENTRYPOINT", file)), "--model", "m"]).params
    assert (compiled["model"], compiled["devices"]) == ("m", "cpu") and Path(served["artifacts"]) == compiled["output"]
    assert last("COPY", file) == f"--from=compile {compiled['output']} {served['artifacts']}"
    without = parsed([*json.loads(last("ENTRYPOINT")), "--model", "m"]).params
    assert served == without | {"artifacts": served["artifacts"]}
    assert {rest.split()[0] for name, rest in instructions(file) if name == "FROM"} == {"$BASE"}


def test_the_container_runs_as_a_user_who_can_write_the_volume_alone() -> None:
    user, group = last("USER").split(":")
    names = [name for name, _ in instructions()]
    assert user.isdigit() and int(user) > 0 and int(group) > 0
    assert names.index("USER") < names.index("ENTRYPOINT")
    run = last("RUN")
    assert f"useradd --uid {user} --gid {group}" in run
    assert run.endswith(last("VOLUME")) and f"XDG_CACHE_HOME={last('VOLUME')}" in last("ENV")


def test_the_health_check_asks_an_open_route_and_tells_a_server_from_none() -> None:
    program, option, code = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    (url,) = re.findall(r"http://[^']+", code)
    assert (program, option) == ("python", "-c") and "/" + url.rpartition("/")[2] in OPEN_PATHS
    with serving(api_key="secret") as server:
        command = [sys.executable, "-c", code.replace(url.rpartition("/")[0], server.url)]
        assert subprocess.run(command, timeout=60).returncode == 0
    assert subprocess.run(command, timeout=60, stderr=subprocess.DEVNULL).returncode != 0


def test_the_image_gets_what_the_package_is_made_of() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    sent = {line[1:] for line in ignore if line.startswith("!")}
    assert all((ROOT / name).exists() for name in sent)
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    modules = {f"{name}.py" for name in PROJECT["tool"]["setuptools"]["py-modules"]}
    assert sent == {"pyproject.toml", "LICENSE", PROJECT["project"]["readme"]} | packages | modules


def test_the_image_has_a_python_that_the_package_runs_on() -> None:
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=").split(".")
    bases = {rest.split()[0] for name, rest in instructions() if name == "FROM"}
    (version,) = [base.removeprefix("python:").removesuffix("-slim").split(".") for base in bases]
    assert list(map(int, version)) >= list(map(int, lowest))


def test_the_unit_starts_the_server_on_this_machine_alone() -> None:
    (command,) = unit()["ExecStart"]
    for name, value in ENVIRONMENT.items():
        assert name in command
        command = command.replace(name, value)
    options = parsed(shlex.split(command)).params
    assert options["host"] == "127.0.0.1" and options["model"] == ENVIRONMENT["${MODEL}"]
    assert options["max_batch_size"] == 16


def test_the_unit_waits_longer_than_the_server_takes_to_end() -> None:
    shutdown_s = parsed(["pipelines", "serve"]).params["shutdown_timeout_s"]
    assert float(unit()["TimeoutStopSec"][0]) > shutdown_s + 5
    assert unit()["KillSignal"] == [last("STOPSIGNAL")] == ["SIGTERM"]
    container_s = re.search(r"--stop-timeout (\d+)", (DEPLOY / "Dockerfile").read_text())
    assert container_s is not None and float(container_s[1]) > shutdown_s + 5


def test_the_unit_restarts_what_failed_but_not_what_cant_be_used() -> None:
    assert unit()["Restart"] == ["on-failure"] and unit()["RestartPreventExitStatus"] == ["2"]


def test_the_key_comes_from_the_environment() -> None:
    variable = next(option.envvar for option in cli.commands.commands["serve"].params if option.name == "api_key")
    for file in ("Dockerfile", "graph-pipelines.service"):
        assert str(variable) in (DEPLOY / file).read_text()
    assert "--api-key" not in unit()["ExecStart"][0] + last("ENTRYPOINT")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("DynamicUser", "yes"), ("ProtectSystem", "strict"), ("NoNewPrivileges", "yes"), ("CapabilityBoundingSet", "")],
)
def test_the_unit_is_confined(setting: str, value: Any) -> None:
    assert unit()[setting] == [value]
    assert unit()["Environment"][0].endswith(f"=/var/cache/{unit()['CacheDirectory'][0]}")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "graph-pipelines.service").read_text()
    path = tmp_path / "graph-pipelines.service"
    path.write_text(text.replace("/opt/graph-pipelines/bin/pipelines", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
