"""The HTTP server: one thread per connection, sockets in our own hands, so that a dropped answer is really dropped."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from metering.runtime.clock import Clock
from metering.sandbox.stripe.answering import Answer, Request

HOST: Final = "127.0.0.1"
MAX_BODY_BYTES: Final = 1_000_000
NOT_STRIPE: Final = ("Stripe-Sandbox", "not-stripe")
"""The header on every answer that tells what this is."""

Answerer = Callable[[Request], Answer | None]


class Server(ThreadingHTTPServer):
    """Listens on loopback, or where `host` says. `answerer` answers; None from it ends the connection without an answer."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True  # it comes back on the same port at once after a kill
    request_queue_size = 256

    def __init__(self, port: int, answerer: Answerer, clock: Clock, host: str = HOST) -> None:
        """Listen on `port`, 0 for a free one. Raises OSError where it is taken. `clock` is for the header `Date`."""
        self.answerer = answerer
        self.clock = clock
        self._stopping = False
        self._taker = threading.Thread(target=self._take, daemon=True)
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end: the `base_addresses["api"]` of a StripeClient."""
        return f"http://{HOST}:{self.server_port}"

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are gone are none of our business: it is what faults and time-outs make of them."""

    def start(self) -> None:
        """Begin to take connections."""
        self._taker.start()

    def stop(self) -> None:
        """Take no more connections, and end those there are, whatever they wait for."""
        self._stopping = True
        with suppress(OSError), socket.create_connection((HOST, self.server_port), timeout=1):
            pass  # it wakes up the taker
        self._taker.join()
        self.server_close()
        with self._open_lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _take(self) -> None:
        """Take connections until `stop`; nothing polls in between, unlike in `serve_forever`."""
        while not self._stopping:
            self.handle_request()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 65_536  # an answer goes out in one piece: `handle_one_request` flushes it
    server: Server
    timeout = 600  # an idle connection is given up, so that threads don't pile up for ever

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def do_DELETE(self) -> None:
        self._respond()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: a line per request would bury everything else."""

    def version_string(self) -> str:
        """What the header `Server` says."""
        return "stripe-sandbox"

    def date_time_string(self, timestamp: float | None = None) -> str:
        """What the header `Date` says: the sandbox's time, as all that it has made."""
        if timestamp is not None:
            return super().date_time_string(timestamp)
        return format_datetime(self.server.clock(), usegmt=True)

    def _respond(self) -> None:
        path, _, query = self.path.partition("?")
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            self._send(Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"{}"))
            return
        body = self.rfile.read(int(length)).decode(errors="replace")
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.answerer(Request(self.command, path, query, body, headers))
        if answer is None:
            self.close_connection = True
        else:
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header(*NOT_STRIPE)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer.body)
