"""``/metrics`` for Prometheus, ``/livez`` for whoever restarts us, ``/healthz`` for alarms; on loopback by default.

Two questions, for they have two answers: a role whose broker is away is not ready and must not be restarted, a role
whose loop stands still is beyond mending itself.

One thread answers one request at a time; a client that dawdles is dropped after `CLIENT_TIMEOUT_S`, so neither
can take more of the process than that.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Final, Self

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from worker.config import ObserveConfig
from worker.errors import ConfigError

CLIENT_TIMEOUT_S: Final = 5.0
LOOP_STOOD_MAX_S: Final = 300.0
"""A loop that has not turned for so long is stuck. Kafka's own bound (``max.poll.interval.ms``): by then the broker has
given its partitions to others, and whatever a loop may wait for takes less."""
Health = Callable[[], tuple[bool, dict[str, Any]]]
_log = logging.getLogger(__name__)


class Observer:
    """Serves while the context is open: 200 on ``/healthz`` while ``health`` says that the role does its work, on
    ``/livez`` while the role calls `turned`, else 503.

    ``health`` returns whether it is ready, and details. It is called on the server's thread, so it must be quick and
    safe to call from there. ``clock`` gives seconds. Raises `ConfigError` where the address cannot be had.
    """

    def __init__(
        self,
        observe: ObserveConfig,
        registry: CollectorRegistry,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._turned_at_s = clock, clock()
        try:
            self._server = HTTPServer((observe.host, observe.port), _handler(registry, health, self._alive))
        except OSError as error:
            raise ConfigError(
                f"observe.host {observe.host}, observe.port {observe.port}: {error.strerror}; port 0 takes any free one"
            ) from error
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="observe")

    @property
    def address(self) -> str:
        """Where it answers, e.g. ``http://127.0.0.1:9464``."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def turned(self) -> None:
        """The role's loop has turned once more."""
        self._turned_at_s = self._clock()

    def _alive(self) -> tuple[bool, dict[str, Any]]:
        stood_s = self._clock() - self._turned_at_s
        return stood_s < LOOP_STOOD_MAX_S, {"loop_stood_s": round(stood_s, 3)}

    def __enter__(self) -> Self:
        self._thread.start()
        _log.info("metrics at %s/metrics, liveness at /livez, readiness at /healthz", self.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(registry: CollectorRegistry, health: Health, alive: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = CLIENT_TIMEOUT_S

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif path == "/livez":
                self._tell(alive(), "alive", "stuck")
            elif path == "/healthz":
                self._tell(health(), "ready", "not ready")
            else:
                self._answer(404, "text/plain", b"/metrics, /livez or /healthz\n")

        def _tell(self, found: tuple[bool, dict[str, Any]], yes: str, no: str) -> None:
            well, details = found
            body = json.dumps({"status": yes if well else no, **details}, default=str).encode()
            self._answer(200 if well else 503, "application/json", body)

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the standard library's name
            _log.debug(format, *args)

    return Handler
