"""The same application on Ray Serve: replicas with batches of their own, on one machine or on many."""

import contextlib
import dataclasses
import logging
import os
import signal
import threading
from typing import Any

from starlette.applications import Starlette

from fdistill.serving.app import Service, create_app
from fdistill.serving.guard import read_token
from fdistill.serving.server import DRAIN
from fdistill.serving.settings import Settings, listening
from fdistill.serving.worker import Worker

_LOG = logging.getLogger(__name__)
_NAME = "fdistill"
_TRIES = 3  # of a replica's start; what is wrong with a generator was found before


class Replica:
    """One service without its socket, which Ray's proxy has."""

    def __init__(self, settings: Settings) -> None:
        """Args:
        settings: of the service; its files are seen by all machines.
        """
        self._token = read_token(settings.token_file)
        self._worker = Worker()
        self._worker.open(settings.paths, settings.how, settings.modules)
        self._service = Service(self._worker, settings.how.size, settings.queue, settings.limit)

    def __serve_build_asgi_app__(self) -> Starlette:
        return create_app(self._service, self._token)

    def check_health(self) -> None:
        """Raises where nothing is made any more: Ray then starts another replica."""
        if not self._worker.alive:
            raise RuntimeError(self._worker.error)


def run(settings: Settings, replicas: int) -> None:
    """Serve until SIGTERM or SIGINT, then answer what waits.

    Args:
        settings: what, and to whom.
        replicas: how many.

    Raises:
        ValueError: for settings that are wrong, without ray, or where the cluster is not fit, in one line.
        OSError: where the port cannot.
        RuntimeError: where the replicas do not start.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ValueError(f"--on ray needs ray: pip install 'fdistill[serve,ray]' ({error})") from error
    settings.token()
    if replicas < 1:
        raise ValueError(f"--replicas is a number of replicas and positive: got {replicas}")
    device, colon, _ = settings.how.device.partition(":")
    if colon:
        raise ValueError(
            f"Ray gives each replica a {device} device of its own: give --device {device}, got {settings.how.device}"
        )
    # what cannot be served is told here, in one line, and not by every replica
    with contextlib.closing(Worker()) as worker:
        how = dataclasses.replace(settings.how, size=1, device="cpu", compiled=False)
        names = worker.open(settings.paths, how, settings.modules)
    with listening(settings.host, settings.port) as opened:
        port = opened.getsockname()[1]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # to nobody
    kind = "GPU" if device == "cuda" else "CPU"
    ended = threading.Event()
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        _connect(ray, serve, kind, replicas)
        for each in before:  # Ray's own would end this process at once
            signal.signal(each, lambda *_: ended.set())
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        serve.start("EveryNode", {"host": settings.host, "port": port}, logging_config=quiet)
        deployment = serve.deployment(
            name=_NAME,
            num_replicas=replicas,
            ray_actor_options={f"num_{kind.lower()}s": 1},
            max_ongoing_requests=settings.queue + 1,  # the bound is the service's, which answers 429
            graceful_shutdown_timeout_s=DRAIN,
            health_check_period_s=1,
            logging_config=quiet,
            max_constructor_retry_count=_TRIES,
        )(serve.ingress()(Replica))
        serve.run(deployment.bind(settings), name=_NAME)
        _LOG.info("%d replicas of Ray: serving %s on %s", replicas, ", ".join(names), settings.place(port))
        while not ended.wait(1):
            serve.status()  # raises where the cluster has ended
        serve.delete(_NAME, _blocking=False)  # each replica answers what it has, then ends
        while _NAME in serve.status().applications:
            ended.clear()
            ended.wait(0.2)
        serve.shutdown()
    finally:
        ray.shutdown()
        for each, handler in before.items():
            signal.signal(each, handler)


def _connect(ray: Any, serve: Any, kind: str, replicas: int) -> None:
    """Join the cluster of RAY_ADDRESS, or start one here that ends with this process."""
    try:
        ray.init(logging_level=logging.WARNING)  # its dashboard listens on 127.0.0.1
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise ValueError(f"no Ray cluster at {where} (RAY_ADDRESS, as 10.0.0.1:6379): {error}") from error
    has = ray.cluster_resources().get(kind, 0)
    if has < replicas:
        raise ValueError(f"--replicas {replicas} wants one {kind} for each: the cluster has {has:.0f}")
    if serve.status().proxies:
        raise ValueError("Ray Serve runs in this cluster already, and listens where it does: end it, or take another")
