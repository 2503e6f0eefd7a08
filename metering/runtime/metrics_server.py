"""Where a role's metrics are read, and whether it is well (docs/reference/metrics.md)."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import disable_created_metrics, make_wsgi_app

from metering.rules.times import format_time
from metering.runtime.health import HEALTH
from metering.runtime.role_metrics import role_registry

HEALTH_PATH: Final = "/healthz"


class MetricsPortError(Exception):
    """The metrics can't be served where they were asked for. The text says what to do."""


@contextmanager
def serving_metrics(
    host: str, port: int, role: str, *, complaint: Callable[[], str | None] = lambda: None
) -> Iterator[str]:
    """Serve the metrics that `role` knows at `http://host:port/metrics` while the block runs; port 0 takes a free one.

    `/healthz` answers 200, or 503 with what `complaint` says is wrong, and what servers refuse. Gives the metrics' address.
    Raises MetricsPortError where it can't be had.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    metrics = make_wsgi_app(role_registry(role))

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != HEALTH_PATH:
            told: Iterable[bytes] = metrics(environ, start_response)
            return told
        refused = [
            f"{each.server} refuses, since {format_time(each.since)}: {each.reason}"
            for each in HEALTH.refusals()
        ]
        wrong = [said for said in (complaint(), *refused) if said is not None]
        start_response(
            "503 Service Unavailable" if wrong else "200 OK", [("Content-Type", "text/plain; charset=utf-8")]
        )
        return [f"{each}\n".encode() for each in wrong or ["ok"]]

    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        server_class = type("Server", (_Server,), {"address_family": family})
        server: WSGIServer = make_server(str(address[0]), port, answer, server_class, _Handler)
    except (OSError, OverflowError) as error:
        raise MetricsPortError(
            f"METERING_METRICS_PORT: {host}:{port} can't be served ({error}); choose another port, or 0 for a free one."
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing of each scrape."""
