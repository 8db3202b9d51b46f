"""Replicas of the server on one machine or many, behind one endpoint, with Ray Serve.

    pip install -e '.[ray]'
    python examples/ray_serve.py --replicas 2 [--model MODEL] [--port 8000] [--address auto]

A request goes to the replica that has the beginning of its prompt in its cache, unless it is overloaded
(pipelines/serve/routing.py). Run it again with other options while it serves, and the replicas are replaced one after
another. docs/scaling.md has the rules, and examples/ray_serve_check.py shows them at work.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType
from typing import Any

import click
import ray
from ray import cloudpickle, serve
from ray.exceptions import RayActorError, RayError
from ray.serve.config import HTTPOptions, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray_router import PrefixRequestRouter
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.config import PipelineConfig
from pipelines.errors import InputError
from pipelines.load import load_pipeline
from pipelines.serve.anthropic.errors import anthropic_error, has_anthropic_errors
from pipelines.serve.app import create_app
from pipelines.serve.error_answers import error_answer
from pipelines.serve.errors import ApiError, ClientGoneError, unavailable
from pipelines.serve.middleware import ApiKey, BodyLimit, RequestIds
from pipelines.serve.routing import prompt_keys
from pipelines.serve.service import Service
from pipelines.serve.settings import ServeSettings
from pipelines.serve.sse import DONE, event, unless_client_leaves
from pipelines.text_generation import TextGenerationPipeline

APP, REPLICAS = "pipelines", "Replica"
OBJECT_STORE_BYTES = 100 * 2**20
"""Ray's shared memory on this machine: answers are small, and pass it by."""
Load = Callable[[], TextGenerationPipeline]
_SCOPE = ("type", "http_version", "method", "path", "query_string", "headers")


@dataclass(frozen=True)
class ScaleSettings:
    """The settings of a deployment.

    num_running: requests that a replica runs at once. num_queued: that may wait at a gateway for a replica.
    queue_timeout_s: for how long. drain_timeout_s: for the requests of a replica that is replaced. num_cpus, num_gpus:
    of a replica. generation: another number replaces all replicas.
    """

    num_replicas: int = 2
    num_gateways: int = 1
    num_running: int = 8
    num_queued: int = 512
    queue_timeout_s: float = 60.0
    drain_timeout_s: float = 600.0
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    generation: int = 0


class Replica:
    """One server's application with its engine."""

    async def __init__(self, load: Load, settings: ServeSettings, generation: int) -> None:  # type: ignore[misc]
        self._name = serve.get_replica_context().replica_id.unique_id.encode()
        self._service = Service(load, settings)
        self._app = create_app(self._service, settings)
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        await self._service.is_loaded.wait()
        if self._service.error is not None:
            raise self._service.error

    async def answer(self, scope: dict[str, Any], body: bytes, keys: Sequence[int]) -> AsyncIterator[list[Message]]:
        """Yields the ASGI messages of an answer, first an empty list when it is begun.

        keys: of the prompt, for the router.
        """
        yield []
        messages = asyncio.Queue[Message | None]()
        receive = _Request(body)
        serving = asyncio.ensure_future(self._app({**scope, "asgi": {"version": "3.0"}}, receive, messages.put))
        serving.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-replica", self._name)]
                yield [message]
            await serving
        finally:  # also when the client has left, whose call is cancelled
            receive.has_left.set()
            serving.cancel()

    async def state(self) -> tuple[int, int]:
        """The replica's process, and the number of sequences in it."""
        return os.getpid(), self._service.num_admitted

    async def check_health(self) -> None:
        """Fails once the engine has: Ray then replaces the replica."""
        self._service.check_ready()

    async def __del__(self) -> None:
        await self._lifespan.__aexit__(None, None, None)


class _Request:
    """A request as the application receives it: its body, and then that the client has left."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.has_left = asyncio.Event()

    async def __call__(self) -> Message:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self.has_left.wait()
        return {"type": "http.disconnect"}


@dataclass
class Forwarder:
    """Sends each request to a replica and its answer back, as it comes."""

    replicas: DeploymentHandle[Any]
    queue_timeout_s: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request, whose body comes as one message."""
        body: bytes = (await receive())["body"]
        call = self.replicas.answer.remote({name: scope[name] for name in _SCOPE}, body, keys=prompt_keys(body))
        answer = _Answer(scope, send)
        try:
            await unless_client_leaves(receive, self._pass_on(call, answer))
        except ClientGoneError:
            return
        except ApiError as error:
            await answer.fail(error, receive)
        finally:
            call.cancel()

    async def _pass_on(self, call: DeploymentResponseGenerator[list[Message]], answer: _Answer) -> None:
        try:
            async with asyncio.timeout(self.queue_timeout_s):
                await anext(call)  # a replica has begun it; until then, Ray sends it to another if one dies
            async for messages in call:
                for message in messages:
                    await answer.send(message)
        except BackPressureError as error:
            raise unavailable("All replicas are busy and the queue is full: try again later.", 1) from error
        except (TimeoutError, DeploymentUnavailableError) as error:
            raise unavailable("No replica could take the request in time: try again later.") from error
        except RayActorError as error:
            lost = "The replica that ran this request was lost. The others go on: try again."
            raise ApiError(500, lost, code="replica_lost") from error
        except RayError as error:
            raise ApiError(500, "The request failed in its replica; its log has the reason.") from error


class _Answer:
    """An answer that a client gets, and its end if its replica is lost."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._status = 0
        self._is_stream = False

    async def send(self, message: Message) -> None:
        """Sends a message of the application."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._is_stream = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
        await self._send(message)

    async def fail(self, error: ApiError, receive: Receive) -> None:
        """Ends the answer with an error: as an event of the API where a stream has begun."""
        if not self._status:
            await error_answer(error, self._scope)(self._scope, receive, self._send)
        elif self._is_stream:
            await self._send({"type": "http.response.body", "body": self._event(error).encode(), "more_body": False})
        else:
            raise error  # the connection is closed: the answer is incomplete

    def _event(self, error: ApiError) -> str:
        if has_anthropic_errors(self._scope):
            return event(anthropic_error(error, self._scope["state"]["request_id"]), "error")
        if self._scope["path"] == "/v1/responses":
            return event(error.body, "error")
        return event(error.body) + DONE


@serve.ingress()
class Gateway:
    """The endpoint: it checks the key, reads the body, and forwards requests to replicas."""

    def __init__(self, replicas: DeploymentHandle[Any], settings: ServeSettings, queue_timeout_s: float) -> None:
        self._forward = Forwarder(replicas.options(stream=True), queue_timeout_s)
        self._settings = settings

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application of this process."""
        app = Starlette(routes=[Mount("/", app=self._forward)])
        app.add_middleware(BodyLimit, self._settings.max_request_bytes, self._settings.body_timeout_s)
        if self._settings.api_key is not None:
            app.add_middleware(ApiKey, self._settings.api_key)
        app.add_middleware(RequestIds)
        app.add_middleware(IdFromProxy)
        return app


class IdFromProxy:
    """Leaves the header X-Request-Id to Ray's proxy, which adds it to answers, and to requests without one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""

        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["X-Request-Id"]
            await send(message)

        await self._app(scope, receive, send_without_id)


def application(load: Load, settings: ServeSettings, scale: ScaleSettings) -> serve.Application:
    """The application for `serve.run`.

    load: gives the pipeline, in each replica. settings: of the server; the key is asked for by the gateway alone.
    """
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no other machine needs this file
    replica = serve.deployment(
        Replica,
        name=REPLICAS,
        num_replicas=scale.num_replicas,
        max_ongoing_requests=scale.num_running,  # more wait at the gateway, where no replica's end loses them
        max_queued_requests=scale.num_queued,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=scale.drain_timeout_s,
        request_router_config=RequestRouterConfig(request_router_class=PrefixRequestRouter),
        ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus},
    )
    gateway = serve.deployment(
        Gateway,
        num_replicas=scale.num_gateways,
        max_ongoing_requests=scale.num_queued + scale.num_replicas * scale.num_running + 64,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=scale.drain_timeout_s,
        ray_actor_options={"num_cpus": 0},
    )
    replicas = replica.bind(load, replace(settings, api_key=None), scale.generation)
    return gateway.bind(replicas, settings, scale.queue_timeout_s)


def deploy(app: serve.Application) -> None:
    """Deploys, or changes what is deployed, and waits until all replicas are ready.

    Raises:
        ClickException: They can't start.
    """
    try:
        serve.run(app, name=APP)
    except RuntimeError as error:
        message = serve.status().applications[APP].deployments[REPLICAS].message
        raise click.ClickException(f"the replicas can't start:\n{message}") from error


@contextmanager
def cluster(address: str | None, num_cpus: float, host: str, port: int) -> Iterator[bool]:
    """Connects to a cluster, or starts one on this machine, which ends with the block; yields whether it was started.

    num_cpus: of the cluster that is started, which Ray counts but does not measure.
    """
    quiet = {"log_to_driver": False, "logging_level": "warning"}
    if address is None:
        ray.init(num_cpus=math.ceil(num_cpus), object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, **quiet)
    else:
        ray.init(address=address, **quiet)
    try:
        serve.start(http_options=HTTPOptions(host=host, port=port), logging_config={"enable_access_log": False})
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        yield address is None
    finally:
        if address is None:
            serve.shutdown()
        ray.shutdown()


def wait_for_signal() -> None:
    """Waits for SIGINT or SIGTERM; another one ends the process at once."""
    is_told = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        is_told.set()
        signal.signal(signum, signal.SIG_DFL)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    is_told.wait()


@click.command()
@click.option("--model", help="As for `pipelines serve`; the demo model if absent.")
@click.option("--devices", default="cpu", show_default=True, help="Devices of each replica.")
@click.option("--max-length", type=int)
@click.option("--max-batch-size", type=int, default=8, show_default=True, help="Requests that a replica runs at once.")
@click.option("--replicas", type=click.IntRange(1), default=2, show_default=True)
@click.option("--gateways", type=click.IntRange(1), default=1, show_default=True)
@click.option("--cpus", type=float, default=1.0, show_default=True, help="CPUs that Ray reserves for a replica.")
@click.option("--gpus", type=float, default=0.0, show_default=True, help="GPUs that Ray reserves for a replica.")
@click.option("--generation", type=int, default=0, help="Another number replaces all replicas of a running deployment.")
@click.option("--address", help="Of a Ray cluster (auto: that of this machine); absent: one is started here.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--api-key", envvar="PIPELINES_API_KEY", help="Better as PIPELINES_API_KEY.")
def main(
    model: str | None,
    devices: str,
    max_length: int | None,
    max_batch_size: int,
    replicas: int,
    gateways: int,
    cpus: float,
    gpus: float,
    generation: int,
    address: str | None,
    host: str,
    port: int,
    api_key: str | None,
) -> None:
    """Serve a model with several replicas behind one endpoint."""
    scale = ScaleSettings(replicas, gateways, max_batch_size, num_cpus=cpus, num_gpus=gpus, generation=generation)
    try:
        config = PipelineConfig(
            model, devices=devices, max_length=max_length, max_batch_size=max_batch_size, enable_prefix_caching=True
        )
        settings = ServeSettings(api_key=api_key, served_model_names=(model or "demo",))
    except InputError as error:
        raise click.UsageError(str(error)) from None
    with cluster(address, (replicas + 1) * cpus, host, port) as is_ours:  # one more than run, for replacements
        deploy(application(partial(load_pipeline, config), settings, scale))
        click.echo(f"{replicas} replicas serve at http://{host}:{port}/v1", err=True)
        if is_ours:
            wait_for_signal()


if __name__ == "__main__":
    main()
