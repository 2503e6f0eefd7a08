"""GET requests that are sent when their time has come: `python -m metering.trials.bench.http_load` is their sender.

A process of its own, which keeps its connections. Latency counts from a request's scheduled time.
"""

import json
import re
import selectors
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

CONNECTIONS: Final = 16
LEAD_S: Final = 0.2
TIMEOUT_S: Final = 10.0

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class GetOrder:
    """What is to be asked, and how often."""

    host: str
    port: int
    path: str
    api_key: str
    per_second: float
    count: int


@dataclass(frozen=True, slots=True)
class Got:
    """What came back."""

    latencies_s: list[float]
    statuses: dict[str, int]
    """How many answers had which status."""


def get_all(order: GetOrder) -> Got:
    """Send every request as soon as it is due and a connection is free; answers are expected with their length."""
    request = (
        f"GET {order.path} HTTP/1.1\r\nHost: {order.host}:{order.port}\r\nAuthorization: Bearer {order.api_key}\r\n\r\n"
    ).encode()
    # In turns: one that isn't used for long is hung up by the server.
    free = deque(_Connection(order.host, order.port) for _ in range(CONNECTIONS))
    got = Got([], {})
    sent = 0
    with selectors.DefaultSelector() as waiting:
        started_s = time.monotonic() + LEAD_S
        while len(got.latencies_s) < order.count:
            now_s = time.monotonic()
            while free and sent < order.count and (due_s := started_s + sent / order.per_second) <= now_s:
                connection = free.popleft()
                connection.send(request, due_s)
                waiting.register(connection.socket, selectors.EVENT_READ, connection)
                sent += 1
            until_due_s = started_s + sent / order.per_second - now_s
            may_send = free and sent < order.count
            ready = waiting.select(max(until_due_s, 0.0) if may_send else TIMEOUT_S)
            if not ready and not may_send:
                raise TimeoutError(f"no answer within {TIMEOUT_S} s")
            for key, _ in ready:
                status = key.data.receive()
                if status is not None:
                    waiting.unregister(key.fileobj)
                    free.append(key.data)
                    got.latencies_s.append(time.monotonic() - key.data.due_s)
                    got.statuses[status] = got.statuses.get(status, 0) + 1
    return got


class _Connection:
    """One request at a time; no library, which would take longer over it than what is measured."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due_s = 0.0
        self._received = b""

    def send(self, request: bytes, due_s: float) -> None:
        self.due_s, self._received = due_s, b""
        self.socket.sendall(request)

    def receive(self) -> str | None:
        """Take what has come; the status once the answer is whole."""
        came = self.socket.recv(65_536)
        if not came:
            raise ConnectionError("the server has hung up")
        self._received += came
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or length is None or len(body) < int(length[1]):
            return None
        return head[9:12].decode()


def get_words(order: GetOrder, answer_path: Path) -> list[str]:
    """The command, for `python -m`, whose process sends `order` and writes what came back to `answer_path`."""
    return ["metering.trials.bench.http_load", json.dumps(asdict(order)), str(answer_path)]


def read_got(answer_path: Path) -> Got:
    """What a sender wrote."""
    return Got(**json.loads(answer_path.read_text()))


def main() -> None:
    """Send what the first argument says; write what came back to the second, a file."""
    words: dict[str, Any] = json.loads(sys.argv[1])
    Path(sys.argv[2]).write_text(json.dumps(asdict(get_all(GetOrder(**words)))))


if __name__ == "__main__":
    main()
