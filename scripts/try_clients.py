"""Runs the scripts of tests/clients against a server, each with its client in an environment of its own.

    python scripts/try_clients.py [--only NAME ...] [--folder .clients]

It starts `pipelines serve` on the demo model with a key, installs the clients from PyPI and npm (the first time), and
prints a table of clients, versions and what each script did. Exits with 1 if one failed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import httpx

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "tests" / "clients"
KEY, MODEL = "a key of the clients", "demo"
TIMEOUT_S = 600


@dataclass(frozen=True)
class Client:
    """A client. script: in tests/clients. packages: of PyPI, or of npm for .mjs; the first is the one that counts."""

    script: str
    packages: Sequence[str]

    @property
    def name(self) -> str:
        """Its name in the table and for --only."""
        return re.sub(r"^use_|\.\w+$", "", self.script) if self.script != "use_openai.mjs" else "openai_npm"


CLIENTS = (
    Client("use_openai_python.py", ["openai", "pydantic"]),
    Client("use_openai.mjs", ["openai"]),
    Client("use_anthropic.py", ["anthropic"]),
    Client("use_langchain.py", ["langchain-openai"]),
    Client("use_litellm.py", ["litellm", "mcp"]),
    Client("use_llm.py", ["llm"]),
    Client("use_ai.mjs", ["ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "zod"]),
    Client("use_lm_eval.py", ["lm_eval[api]", "transformers"]),
)


def install(client: Client, folder: Path) -> list[str]:
    """Installs a client, unless it is there, and returns the command that runs its script."""
    home = folder / client.name
    if client.script.endswith(".mjs"):
        if not (home / "node_modules").exists():
            home.mkdir(parents=True, exist_ok=True)
            (home / "package.json").write_text("{}")
            _call(["npm", "install", "--silent", "--no-audit", "--no-fund", *client.packages], home)
        script = home / client.script  # Node looks for packages beside the script
        script.write_text((SCRIPTS / client.script).read_text())
        return ["node", str(script)]
    python = home / "bin" / "python"
    if not python.exists():
        _call([sys.executable, "-m", "venv", str(home)], ROOT)
        _call([str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *client.packages], ROOT)
    return [str(python), str(SCRIPTS / client.script)]


def version_of(client: Client, folder: Path) -> str:
    """The installed version of the client."""
    home, package = folder / client.name, client.packages[0].partition("[")[0]
    if client.script.endswith(".mjs"):
        return str(json.loads((home / "node_modules" / package / "package.json").read_text())["version"])
    code = f"from importlib.metadata import version; print(version('{package}'))"
    return _call([str(home / "bin" / "python"), "-c", code], ROOT).strip()


def _call(command: Sequence[str], folder: Path) -> str:
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def serving() -> Iterator[str]:
    """A server on the demo model, which is ready; yields its address."""
    command = [str(Path(sys.executable).with_name("pipelines")), "serve", "--port", "0", "--served-model-name", MODEL]
    env = {**os.environ, "PIPELINES_API_KEY": KEY}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        url = next(filter(None, (re.search(r"http://\S+", line) for line in process.stderr)))[0]
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                while client.get("/ready").status_code != 200:
                    pass
            yield url
        finally:
            process.send_signal(signal.SIGTERM)


def run(client: Client, folder: Path, url: str) -> tuple[bool, str]:
    """Runs a client's script; returns whether it passed, and what it did."""
    command = install(client, folder)
    tokenizer = ROOT / "pipelines" / "demo-base"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"URL": url, "KEY": KEY, "MODEL": MODEL, "TOKENIZER": str(tokenizer)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        click.echo(f"{client.name}:\n{done.stdout}{done.stderr}", err=True)
    return done.returncode == 0, "; ".join(done.stdout.splitlines())


@click.command()
@click.option("--only", multiple=True, type=click.Choice([client.name for client in CLIENTS]), help="May be repeated.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=ROOT / ".clients", help="Where clients are installed."
)
def main(only: tuple[str, ...], folder: Path) -> None:
    """Try real clients against the server."""
    folder = folder.resolve()
    is_good = True
    click.echo("| client | version | tried |\n| --- | --- | --- |")
    with serving() as url:
        for client in CLIENTS:
            if not only or client.name in only:
                passed, told = run(client, folder, url)
                is_good &= passed
                version = version_of(client, folder)
                click.echo(
                    f"| {client.packages[0]} ({client.script}) | {version} | {'' if passed else 'FAILS: '}{told} |"
                )
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
