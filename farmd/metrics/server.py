# SPDX-License-Identifier: Apache-2.0
"""HTTP for Prometheus: GET /metrics on one address, in threads of its own, and nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from functools import partial
from ipaddress import ip_address
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from farmd.model.errors import KernelError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

DEFAULT_LISTEN = ("127.0.0.1", 4805)
"""Beside the membership's UDP port 4804: the range that exporters share (9100 to 9999) has no number left."""
_MOST_CLIENTS = 8
"""Connections served at the same time; one more is closed at once, so that nobody can make farmd fork threads."""
_IDLE_S = 10.0
"""A client that sends no request for so long is sent away."""
_POLL_S = 0.1
"""How long `stop` may take."""

_App = Callable[["WSGIEnvironment", "StartResponse"], Iterable[bytes]]


class MetricsServer:
    """Serves a registry until `stop`."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Listen on `host`, an IP address, and `port` (0: any free one).

        Raises:
            KernelError: the address is not this host's, or somebody else listens there.
        """
        try:
            self._server = _Server(host, port)
        except OSError as error:
            raise KernelError(
                f"metrics on {host} port {port}",
                f"it cannot be listened on ({error.strerror or error})",
                "Choose another address or port for metrics, or end what listens there",
            ) from error
        self._server.set_app(_only_metrics(make_wsgi_app(registry)))
        serve = partial(self._server.serve_forever, poll_interval=_POLL_S)
        self._thread = threading.Thread(target=serve, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.server_port

    def stop(self) -> None:
        """Close the socket. A scrape that is being answered goes on in its own thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._free = threading.BoundedSemaphore(_MOST_CLIENTS)
        self.address_family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: that one asks a name service who we are.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self._host, self.socket.getsockname()[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is nobody's problem."""


class _Handler(WSGIRequestHandler):
    timeout = _IDLE_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """A scrape every few seconds is no news."""


def _only_metrics(app: _App) -> _App:
    """`app` at /metrics; prometheus_client would answer to any path."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            return app(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"Metrics of farmd are at /metrics\n"]

    return answer
