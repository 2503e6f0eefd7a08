"""Around every request: it gets an id, is counted and timed, and answered whatever happens."""

import logging
import re
import time
from typing import Final
from uuid import uuid4

import structlog
from prometheus_client import Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

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

REQUEST_ID: Final = b"x-request-id"
_GOOD_ID: Final = re.compile(rb"[A-Za-z0-9._-]{8,64}", re.ASCII)
"""Of a caller's ids: what can't be taken for anything else in a log. For any other a new one is made."""
_CHANGE_NOTHING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_FOR_EVERY_CALL: Final = frozenset({"/v1/calls", "/v1/calls/{call_id}/renew", "/v1/calls/{call_id}"})
"""Telephony asks for these hundreds of times a second, and what comes of it stands in Redis: a line for each is no help."""
_FOR_ANYBODY: Final = frozenset({401, 404, 405, 429})
"""What anybody can bring about as often as he likes: no log is to be filled with it."""
_SERVER_ERROR: Final = 500

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
        request_id = _request_id(scope)
        # The request's task ends with it, and has a context of its own: nothing has to be taken back.
        bind_contextvars(request_id=request_id)

        async def noting(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                # Balances and secrets: of today, and for whoever asked.
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Request-Id"] = request_id
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
            took_s = time.perf_counter() - began_s
            REQUEST_SECONDS.labels(*labels).observe(took_s)
            _tell(method, route, status, took_s)


def _request_id(scope: Scope) -> str:
    """The caller's, if it sends one that will do, so that its logs and ours tell of one request by one id; else a new one."""
    sent = [value for name, value in scope["headers"] if name == REQUEST_ID]
    return sent[0].decode() if len(sent) == 1 and _GOOD_ID.fullmatch(sent[0]) else uuid4().hex


def _tell(method: str, route: str, status: int, took_s: float) -> None:
    """A line for each request that may have changed something, or that failed here; for others and holds only below info."""
    changes = method not in _CHANGE_NOTHING and route not in _FOR_EVERY_CALL
    told = status >= _SERVER_ERROR or (changes and status not in _FOR_ANYBODY)
    if told or log.is_enabled_for(logging.DEBUG):
        say = log.info if told else log.debug
        say("request", method=method, route=route, status=status, took_ms=round(took_s * 1_000, 1))


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", UNMATCHED)
