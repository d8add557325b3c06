"""``/metrics`` for Prometheus and ``/healthz`` for whoever restarts us, on loopback unless configured otherwise.

One thread answers one request at a time; a client that dawdles is dropped after `CLIENT_TIMEOUT_S`, so neither
can take more of the process than that.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Final, Self

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from worker.config import ObserveConfig
from worker.errors import ConfigError

CLIENT_TIMEOUT_S: Final = 5.0
Health = Callable[[], tuple[bool, dict[str, Any]]]
_log = logging.getLogger(__name__)


class Observer:
    """Serves while the context is open. ``health`` says whether all is well, with details; 200 if so, else 503.

    ``health`` is called on the server's thread, so it must be quick and safe to call from there.
    """

    def __init__(self, observe: ObserveConfig, registry: CollectorRegistry, health: Health) -> None:
        try:
            self._server = HTTPServer((observe.host, observe.port), _handler(registry, health))
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

    def __enter__(self) -> Self:
        self._thread.start()
        _log.info("metrics at %s/metrics, health at %s/healthz", self.address, self.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(registry: CollectorRegistry, health: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = CLIENT_TIMEOUT_S

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif path == "/healthz":
                well, details = health()
                body = json.dumps({"status": "ok" if well else "unwell", **details}, default=str).encode()
                self._answer(200 if well else 503, "application/json", body)
            else:
                self._answer(404, "text/plain", b"/metrics or /healthz\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the standard library's name
            _log.debug(format, *args)

    return Handler
