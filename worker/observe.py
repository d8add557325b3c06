"""``/metrics`` for Prometheus, ``/livez`` for whoever restarts us, ``/healthz`` for alarms; on loopback by default.

Two questions, for they have two answers: a role whose broker is away is not ready and must not be restarted, a role
whose loop stands still is beyond mending itself.

Each request has a thread of its own, and `REQUEST_TIMEOUT_S` from connection to answer; of more than `REQUESTS_MAX` at
once the oldest give way. So however many clients dawdle, a probe is answered.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR, socket
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Final, Self

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from worker.config import ObserveConfig
from worker.errors import ConfigError

REQUEST_TIMEOUT_S: Final = 5.0
REQUESTS_MAX: Final = 16
LOOP_STOOD_MAX_S: Final = 300.0
"""A loop that has not turned for so long is stuck. Kafka's own bound (``max.poll.interval.ms``): by then the broker has
given its partitions to others, and whatever a loop may wait for takes less."""
LOOP_STOOD_SECONDS: Final = "millrace_loop_stood_seconds"
Health = Callable[[], tuple[bool, dict[str, Any]]]
_log = logging.getLogger(__name__)


class Observer:
    """Serves while the context is open: 200 on ``/healthz`` while ``health`` says that the role does its work, on
    ``/livez`` while the role calls `turned`, else 503. The registry has `LOOP_STOOD_SECONDS` meanwhile.

    ``health`` returns whether it is ready, and details. It is called on threads of the server, so it must be quick and
    safe to call from there. ``clock`` gives seconds. Raises `ConfigError` where the address cannot be had.
    """

    def __init__(
        self,
        observe: ObserveConfig,
        registry: CollectorRegistry,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._turned_at_s, self._registry = clock, clock(), registry
        # Computed when it is scraped: what a loop itself sets stays at its last value when the loop stands.
        self._gauge = Gauge(LOOP_STOOD_SECONDS, "Time since the loop last turned.", registry=None)
        self._gauge.set_function(lambda: self._clock() - self._turned_at_s)
        try:
            self._server = _Server((observe.host, observe.port), _handler(registry, health, self._alive))
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
        self._registry.register(self._gauge)
        self._thread.start()
        _log.info("metrics at %s/metrics, liveness at /livez, readiness at /healthz", self.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._registry.unregister(self._gauge)


class _Server(ThreadingHTTPServer):
    """Bounds requests in number and time. Ended, a connection reads and writes no more, so its thread ends."""

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._under_way: dict[socket, float] = {}  # until when, the oldest first
        self._lock = Lock()  # a connection is closed by its own thread: never while another ends it
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._under_way[request] = time.monotonic() + REQUEST_TIMEOUT_S
        self._end(keep=REQUESTS_MAX)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._under_way.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called at every turn of the server's loop."""
        self._end(keep=REQUESTS_MAX)

    def server_close(self) -> None:
        super().server_close()
        self._end(keep=0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # The standard library prints a traceback and the client's address.
        if isinstance(sys.exception(), OSError):
            _log.debug("a client went away", exc_info=True)
        else:
            _log.exception("a request ended on a defect")

    def _end(self, *, keep: int) -> None:
        now_s = time.monotonic()
        with self._lock:
            while self._under_way:
                request, until_s = next(iter(self._under_way.items()))
                if len(self._under_way) <= keep and now_s < until_s:
                    return
                del self._under_way[request]
                with suppress(OSError):
                    request.shutdown(SHUT_RDWR)


def _handler(registry: CollectorRegistry, health: Health, alive: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
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
