"""HTTP metrics, around every request: it is counted, timed, and answered whatever happens."""

import time
from typing import Final

import structlog
from prometheus_client import Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metering.api.errors import INTERNAL_ERROR, error_response

# Base units, and no org ever as a label: routes are labelled by their pattern (docs/reference/metrics.md).
REQUESTS: Final = Counter(
    "metering_http_requests", "HTTP requests answered, by route and status.", ["method", "route", "status"]
)
REQUEST_SECONDS: Final = Histogram(
    "metering_http_request_seconds",
    "HTTP latency: from a request's headers to the end of its response.",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
UNMATCHED: Final = "unmatched"
"""Route and method of a request to nowhere: what clients make up must not become labels without end."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER: Final = "other"
"""Any other method: a client may make up as many as it likes, of 60 KB each."""
CLIENT_GONE: Final = 499
"""Counted where the client was gone before there was an answer."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class HttpMetrics:
    """The outermost layer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = time.perf_counter(), CLIENT_GONE
        answered = False

        async def noting(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                # Balances and secrets: of today, and for whoever asked.
                MutableHeaders(scope=message).setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except ClientDisconnect:
            pass  # it went while it sent its body: there is nobody to answer
        except Exception:
            # Frames are logged without their variables, which may be secrets (metering/runtime/logs.py).
            log.exception("a request failed", method=scope["method"], route=_route(scope))
            if answered:
                raise  # half an answer is cut off: the client must not take it for a whole one
            await error_response(500, *INTERNAL_ERROR)(scope, receive, noting)
        finally:
            route = _route(scope)
            method = scope["method"] if scope["method"] in METHODS else OTHER
            labels = (UNMATCHED if route == UNMATCHED else method, route, str(status))
            REQUESTS.labels(*labels).inc()
            REQUEST_SECONDS.labels(*labels).observe(time.perf_counter() - began_s)


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", UNMATCHED)
