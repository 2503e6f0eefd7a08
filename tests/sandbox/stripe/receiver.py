"""A place that takes webhooks, and checks what Stripe's own SDK checks."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import stripe


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request that came."""

    body: bytes
    signature: str

    def event(self, secret: str) -> dict[str, Any]:
        """The event, if the SDK takes its signature by `secret`. Raises stripe.SignatureVerificationError."""
        verified: dict[str, Any] = stripe.Webhook.construct_event(self.body, self.signature, secret).to_dict()
        return verified


@dataclass
class Receiver:
    """Keeps what came, in order. `answer` says with which status each is answered."""

    url: str
    deliveries: list[Delivery] = field(default_factory=list)
    answer: Callable[[int], int] = lambda _: 200
    """Takes how many have come before."""

    def types(self, secret: str = "whsec_sandbox") -> list[str]:  # noqa: S107
        """The types of all that came."""
        return [each.event(secret)["type"] for each in list(self.deliveries)]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver on a free port of loopback."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                status = taker.answer(len(taker.deliveries))
                taker.deliveries.append(Delivery(body, self.headers["Stripe-Signature"]))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    taker = Receiver(f"http://127.0.0.1:{server.server_port}/webhook")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield taker
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
