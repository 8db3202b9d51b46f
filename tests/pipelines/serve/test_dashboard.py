"""The Grafana dashboard reads what a server exports, and all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from fake_model import prompts_of
from metric_samples import Samples, read_metrics
from serving import Held, chat_pipeline, eventually, model_of, post_and_leave, post_in_background, serving, stream

import cli

pytestmark = pytest.mark.slow  # together they take seconds

ROOT = Path(cli.__file__).parent
DASHBOARD = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
PATH = "/v1/completions"
BODY: dict[str, Any] = {"prompt": "AB", "max_tokens": 5, "ignore_eos": True}


@pytest.fixture(scope="module")
def samples() -> Iterator[Samples]:
    """Those of a server that has streamed, answered, failed, refused, and been left by a client."""
    pipe = chat_pipeline(max_batch_size=1, enable_prefix_caching=True)
    with serving(pipe, max_queue_size=0) as server, server.client() as client:
        stream(client, PATH, **BODY)
        assert client.post(PATH, json={**BODY, "prompt": prompts_of(300)[0], "n": 2}).status_code == 200
        model_of(server).broken_after = server.pipe.tokenizer.encode("Z")[0]
        assert client.post(PATH, json={**BODY, "prompt": "Z"}).status_code == 500
        held = Held(server)
        left = post_in_background(server, PATH, **BODY)
        assert held.is_held.wait(30)
        assert client.post(PATH, json=BODY).status_code == 429
        held.may_go_on.set()
        assert left().status_code == 200
        held = Held(server)
        post_and_leave(server, PATH, held.is_held.is_set, **BODY)
        eventually(lambda: server.pipe.engine._marked)
        held.may_go_on.set()
        eventually(lambda: read_metrics(client).value("request_success_total", finished_reason="abort"))
        yield read_metrics(client)


def expressions() -> Iterator[tuple[str, str]]:
    """Title of a panel and expression, for each."""
    for panel in PANELS:
        assert panel["targets"], panel["title"]
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])


def metrics_of(expression: str) -> set[str]:
    return set(re.findall(r"vllm:\w+", expression))


def test_what_happened_was_counted(samples: Samples) -> None:
    reasons = ("length", "abort", "error", "stop")
    assert [samples.value("request_success_total", finished_reason=each) for each in reasons] == [4, 1, 1, 0]
    assert samples.value("admission_rejections_total", reason="queue_full") == 1


@pytest.mark.parametrize(("title", "expression"), list(expressions()))
def test_an_expression_reads_what_is_exported(samples: Samples, title: str, expression: str) -> None:
    assert metrics_of(expression) and metrics_of(expression) <= samples.names
    assert expression.count("(") == expression.count(")")
    for name in metrics_of(expression):
        assert f'{name}{{model_name="$model_name"}}' in expression
        labels = set().union(*(each.labels for each in samples.samples if each.name == name))
        grouped = re.search(r"by \((\w+)\)", expression)
        assert grouped is None or grouped[1] in labels


def test_legends_name_labels_that_there_are(samples: Samples) -> None:
    for target in (target for panel in PANELS for target in panel["targets"]):
        (name, *_) = metrics_of(target["expr"])
        labels = set().union(*(each.labels for each in samples.samples if each.name == name))
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels


def families(names: Iterable[str]) -> set[str]:
    """Names without the parts of histograms, and without the times of creation of counters."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names if not name.endswith("_created")}


def test_a_panel_shows_all_that_is_exported(samples: Samples) -> None:
    read = set().union(*(metrics_of(expression) for _, expression in expressions()))
    assert families(read) == families(samples.names)


def test_the_documentation_names_all_that_is_exported(samples: Samples) -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    (section,) = re.findall(r"^## Metrics$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {f"vllm:{name}" for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert documented == families(samples.names)


def test_panels_have_places_and_variables_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert not [pair for pair in combinations(places, 2) if overlap(*pair)]
    variables = {f"${{{variable['name']}}}" for variable in DASHBOARD["templating"]["list"]}
    used = {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert used <= variables and "${model_name}" in variables


def overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    is_beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
    is_above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    return not (is_beside or is_above)
