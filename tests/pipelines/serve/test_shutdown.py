"""The end of the server: it refuses, finishes or cuts, and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_model import assert_idle
from serving import Held, LiveServer, chat_pipeline, events_of, eventually, post_in_background, serving

PATH = "/v1/completions"
LONG: dict[str, Any] = {"prompt": "AB", "max_tokens": 50, "ignore_eos": True}


def wait_for_draining(client: httpx.Client) -> httpx.Response:
    while True:
        response = client.get("/ready")
        if response.status_code == 503:
            return response


def test_requests_that_run_are_finished_and_new_ones_are_refused() -> None:
    with serving() as server, server.client() as client:
        held = Held(server)
        running = post_in_background(server, PATH, **LONG)
        assert held.is_held.wait(30)
        server.begin_shutdown()
        assert wait_for_draining(client).json()["error"]["type"] == "service_unavailable_error"
        assert client.post(PATH, json=LONG).status_code == 503
        assert client.get("/health").json() == {"status": "draining"}
        held.may_go_on.set()
        assert running().json()["usage"]["completion_tokens"] == 50
        server.wait()
    assert_idle(server.pipe)


def test_requests_that_are_out_of_time_are_cut_and_told_so() -> None:
    with serving(shutdown_timeout_s=0.2) as server:
        held = Held(server)
        whole, stream = post_in_background(server, PATH, **LONG), post_in_background(server, PATH, **LONG, stream=True)
        assert held.is_held.wait(30)
        eventually(lambda: server.service.num_admitted == 2)
        server.begin_shutdown()
        time.sleep(0.4)  # the time is over while the step still runs
        held.may_go_on.set()
        assert whole().status_code == 503
        assert "shutting down" in events_of(stream().iter_lines())[-1]["error"]["message"]
        server.wait()
    assert_idle(server.pipe)


def test_a_model_that_cant_be_loaded_ends_the_server() -> None:
    server = LiveServer(chat_pipeline())
    server.load = None  # type: ignore[method-assign, assignment]
    server.service._load = lambda: 1 / 0  # type: ignore[assignment, return-value]
    server.wait()
    assert isinstance(server.service.error, ZeroDivisionError)


PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
from serving import chat_pipeline
from pipelines.serve.runner import reserve_port, run
from pipelines.serve.service import Service
from pipelines.serve.settings import ServeSettings

pipe = chat_pipeline(max_length=100_000)
pipe.model.during_step = lambda: time.sleep(0.01)
settings = ServeSettings(port=0, shutdown_timeout_s=float(sys.argv[2]))
listener = reserve_port(settings.host, settings.port)
print(listener.getsockname()[1], flush=True)
run(Service(lambda: pipe, settings), settings, listener)
print("ended", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_loaded_with_work", "timeout_s", "num_signals", "code"),
    [(False, 30, 1, 0), (True, 0.1, 1, 0), (True, 30, 2, 143)],
)
def test_signals(is_loaded_with_work: bool, timeout_s: float, num_signals: int, code: int) -> None:
    support = Path(__file__).parents[2] / "support"
    command = [sys.executable, "-c", PROGRAM, str(support), str(timeout_s)]
    # MAX sets variables of Python's behind its back.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            eventually(lambda: client.get("/ready").status_code == 200)
            body = {**LONG, "max_tokens": 10_000, "stream": True}
            if is_loaded_with_work:
                with client.stream("POST", PATH, json=body) as response:
                    lines = response.iter_lines()
                    next(lines)
                    process.send_signal(signal.SIGTERM)
                    if num_signals == 2:
                        with httpx.Client(base_url=client.base_url) as other:
                            wait_for_draining(other)
                        process.send_signal(signal.SIGTERM)
                    else:
                        assert "shutting down" in list(lines)[-4]
            else:
                process.send_signal(signal.SIGTERM)
        assert process.wait(30) == code
        assert process.stdout.read() == ("" if code else "ended\n")
