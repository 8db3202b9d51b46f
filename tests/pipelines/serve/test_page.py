"""The chat page as a file and an answer: its headers, what it may load, and that its route alone needs no key."""

from __future__ import annotations

import base64
import hashlib
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from serving import serving

import pipelines.serve

ROOT = Path(__file__).parents[3]
NAMESPACES = {"http://www.w3.org/2000/svg"}  # names, which nothing loads


class Inline(HTMLParser):
    """The scripts and styles of a page, its elements' attributes, and its elements' names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.content: dict[str, list[str]] = {"script": [], "style": []}
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag in self.content:
            self.content[tag].append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag in self.content and self.cdata_elem:
            self.content[self.lasttag][-1] += data


@pytest.fixture
def answer(client: httpx.Client) -> httpx.Response:
    return client.get("/")


def policy_of(answer: httpx.Response) -> dict[str, list[str]]:
    directives = (each.split() for each in answer.headers["content-security-policy"].split(";"))
    return {name: values for name, *values in directives}


def sha256(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_page_is_html_that_may_do_nothing_but_talk_to_its_server(answer: httpx.Response) -> None:
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = policy_of(answer)
    assert policy.keys() >= {"script-src", "style-src"}
    assert {name: values for name, values in policy.items() if name not in ("script-src", "style-src")} == {
        "default-src": ["'none'"],
        "connect-src": ["'self'"],
        "img-src": ["data:", "blob:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }


def test_the_hashes_are_those_of_its_one_script_and_one_style(answer: httpx.Response) -> None:
    inline, policy = Inline(answer.text), policy_of(answer)
    for kind in ("script", "style"):
        (content,) = inline.content[kind]
        assert len(content) > 1000 and policy[f"{kind}-src"] == [sha256(content)]
    names = {name for name, _ in inline.attributes}
    assert "style" not in names and not [name for name in names if name.startswith("on")]


def test_it_names_no_other_server(answer: httpx.Response) -> None:
    assert set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w[^\s'")]*""", answer.text)) <= NAMESPACES
    links = [value for name, value in Inline(answer.text).attributes if name in ("src", "href", "action", "srcset")]
    assert links and all(link.startswith("data:") for link in links)
    assert "@import" not in answer.text and "url(" not in answer.text


def test_it_never_makes_markup_of_text(answer: httpx.Response) -> None:
    (script,) = Inline(answer.text).content["script"]
    ways = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "DOMParser",
        "eval(",
        "Function(",
        "srcdoc",
    )
    assert not [way for way in ways if way in script]


def test_there_is_no_icon_to_fetch(client: httpx.Client) -> None:
    assert client.get("/favicon.ico").status_code == 204


def test_the_page_comes_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "page.html" in project["tool"]["setuptools"]["package-data"]["pipelines.serve"]
    assert (Path(pipelines.serve.__file__).parent / "page.html").exists()


def test_the_page_and_the_health_need_no_key_and_nothing_else_does() -> None:
    others = {
        "/nothing",
        "//",
        "//ready",
        "/index.html",
        "/page.html",
        "/favicon.ico/",
        "/favicon",
        "/Health",
        "/health/",
    }
    with serving(api_key="secret") as server, server.client() as client:
        described = client.get("/openapi.json", headers={"Authorization": "Bearer secret"}).json()["paths"]
        paths = {*described, *others, "/", "/favicon.ico", "/openapi.json"}
        open_paths = {path for path in paths if client.get(server.url + path).status_code != 401}
        page = client.get("/")
    assert {"/v1/models", "/v1/chat/completions"} <= paths
    assert open_paths == {"/", "/favicon.ico", "/health", "/ready"}
    assert page.status_code == 200 and "secret" not in page.text
