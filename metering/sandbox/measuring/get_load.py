"""GET requests that are sent when their time has come: `python -m metering.sandbox.measuring.get_load` is their sender.

A process of its own, with a thread for each of its connections, which it keeps. Latency counts from a request's scheduled time.
"""

import json
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

CONNECTIONS: Final = 16
LEAD_S: Final = 0.2
TIMEOUT_S: Final = 10.0


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
    """Send every request as soon as it is due, and a connection of those that take turns is free."""
    started_s = time.monotonic() + LEAD_S

    def work(first: int) -> list[tuple[float, int]]:
        connection = HTTPConnection(order.host, order.port, timeout=TIMEOUT_S)
        answers: list[tuple[float, int]] = []
        for number in range(first, order.count, CONNECTIONS):
            due_s = started_s + number / order.per_second
            time.sleep(max(due_s - time.monotonic(), 0.0))
            connection.request("GET", order.path, headers={"Authorization": f"Bearer {order.api_key}"})
            answer = connection.getresponse()
            answer.read()
            answers.append((time.monotonic() - due_s, answer.status))
        connection.close()
        return answers

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        answers = [each for some in threads.map(work, range(CONNECTIONS)) for each in some]
    statuses = Counter(str(status) for _, status in answers)
    return Got([latency_s for latency_s, _ in answers], dict(statuses))


def get_words(order: GetOrder, answer_path: Path) -> list[str]:
    """The command, for `python -m`, whose process sends `order` and writes what came back to `answer_path`."""
    return ["metering.sandbox.measuring.get_load", json.dumps(asdict(order)), str(answer_path)]


def read_got(answer_path: Path) -> Got:
    """What a sender wrote."""
    return Got(**json.loads(answer_path.read_text()))


def main() -> None:
    """Send what the first argument says; write what came back to the second, a file."""
    words: dict[str, Any] = json.loads(sys.argv[1])
    Path(sys.argv[2]).write_text(json.dumps(asdict(get_all(GetOrder(**words)))))


if __name__ == "__main__":
    main()
