"""The HTTP port of a process: `/metrics` for Prometheus, `/healthz` and `/readyz` for who restarts it.

It has no way to the films, and whatever happens here stops no film: a port that cannot be had is logged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from dicom_node.logs import get_logger

log = get_logger("metrics")

_PLAIN = "text/plain; charset=utf-8"
_REQUEST_SECONDS = 10.0

Readiness = Callable[[], str | None]
"""None when the process can do its work, else a sentence that says what is in the way."""


class Endpoint:
    """Serves one registry; nothing at all with port 0."""

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int, readiness: Readiness) -> None:
        self._registry = registry
        self._address = (host, port)
        self._readiness = readiness
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen in a thread of its own."""
        if not self._address[1]:
            return
        disable_created_metrics()  # type: ignore[no-untyped-call]
        try:
            self._server = _Server(self._address, _handler(self._registry, self._readiness))
        except OSError as error:
            log.error("metrics_not_served", host=self._address[0], port=self._address[1], why=error.strerror)
            return
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        log.info("metrics_served", host=self._address[0], port=self._address[1])

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that hangs up is no event."""


def _handler(registry: CollectorRegistry, readiness: Readiness) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_SECONDS
        server_version, sys_version = "covariance", ""

        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(HTTPStatus.OK, encode(registry), content_type)
                case "/healthz":
                    self._answer(HTTPStatus.OK, b"alive\n")
                case "/readyz":
                    objection = readiness()
                    status = HTTPStatus.SERVICE_UNAVAILABLE if objection else HTTPStatus.OK
                    self._answer(status, f"{objection or 'ready'}\n".encode())
                case _:
                    self._answer(HTTPStatus.NOT_FOUND, b"/metrics, /healthz and /readyz are here.\n")

        def _answer(self, status: HTTPStatus, content: bytes, content_type: str = _PLAIN) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing: a scrape every few seconds is no event."""

    return Handler
