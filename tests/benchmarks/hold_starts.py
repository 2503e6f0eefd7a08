# ruff: noqa: T201 - a table on the terminal is the point
"""What it takes to hold money for calls over HTTP: `python -m tests.benchmarks.hold_starts [PER_SECOND ...]`.

An API process on embedded servers of its own; each org runs ten calls already. Requests are sent when their time has come,
over sixteen connections; latency counts from then to the end of the answer.
"""

import itertools
import json
import os
import selectors
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from secrets import token_urlsafe
from typing import Final

from metering.rules.gates import Balance
from metering.runtime.clock import system_clock
from metering.signals.gates import Gates
from metering.signals.holds import Holds
from metering.trials.bench.fixture import TIER, Fixture, make_orgs, making_fixture
from metering.trials.bench.http_load import CONNECTIONS, LEAD_S, _Connection
from metering.trials.bench.http_reads import TELEPHONY_SETTING, api_address
from metering.trials.bench.percentiles import percentiles
from metering.trials.bench.roles import api_commands, running_roles

ORGS: Final = 1_000
RUNNING: Final = 10
SECONDS: Final = 8.0
RATES: Final = (200.0, 400.0, 800.0)


def fill(fixture: Fixture) -> None:
    """Orgs with open gates, each with ten running calls."""
    org_ids = range(1, ORGS + 1)
    make_orgs(fixture.owner, org_ids)
    Gates(fixture.client).follow([Balance(org_id, 10**9, 1) for org_id in org_ids], system_clock())
    holds = Holds(fixture.client)
    for org_id in org_ids:
        for call_id in range(1, RUNNING + 1):
            holds.start(org_id, call_id, 80, 3_600)


def requests(host: str, port: int, token: str, call_ids: Iterator[int]) -> Iterator[bytes]:
    """One start after another, each of another call."""
    for call_id in call_ids:
        body = json.dumps(
            {
                "call_id": call_id,
                "org_id": call_id % ORGS + 1,
                "direction": "outbound",
                "tier": TIER,
                "seconds": 600,
            }
        ).encode()
        yield (
            f"POST /v1/calls HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body


def send(
    host: str, port: int, asked: Iterator[bytes], per_second: float, count: int
) -> tuple[list[float], Counter[str]]:
    """Send each when it is due and a connection is free."""
    free = deque(_Connection(host, port) for _ in range(CONNECTIONS))
    latencies_s: list[float] = []
    statuses: Counter[str] = Counter()
    sent = 0
    with selectors.DefaultSelector() as waiting:
        started_s = time.monotonic() + LEAD_S
        while len(latencies_s) < count:
            now_s = time.monotonic()
            while free and sent < count and (due_s := started_s + sent / per_second) <= now_s:
                connection = free.popleft()
                connection.send(next(asked), due_s)
                waiting.register(connection.socket, selectors.EVENT_READ, connection)
                sent += 1
            pause_s = started_s + sent / per_second - now_s if free and sent < count else 10.0
            for key, _ in waiting.select(max(pause_s, 0.0)):
                status = key.data.receive()
                if status is not None:
                    waiting.unregister(key.fileobj)
                    free.append(key.data)
                    latencies_s.append(time.monotonic() - key.data.due_s)
                    statuses[status] += 1
    return latencies_s, statuses


def main() -> None:
    """Measure each rate, and print a table."""
    rates = [float(word) for word in sys.argv[1:]] or RATES
    data_dir = Path(tempfile.mkdtemp(prefix="holds-"))
    try:
        with making_fixture(data_dir) as fixture:
            fill(fixture)
            token = os.environ[TELEPHONY_SETTING] = token_urlsafe()
            call_ids = itertools.count(1_000)
            with running_roles(data_dir, api_commands()) as roles:
                host, port = api_address(roles)
                asked = requests(host, port, token, call_ids)
                send(host, port, asked, 100.0, 200)
                print("| starts/s | p50, ms | p99, ms | answers |\n| ---: | ---: | ---: | --- |")
                for rate in rates:
                    began_s = time.monotonic()
                    latencies_s, statuses = send(host, port, asked, rate, int(rate * SECONDS))
                    took = percentiles(latencies_s)
                    reached = len(latencies_s) / (time.monotonic() - began_s - LEAD_S)
                    print(
                        f"| {rate:.0f} ({reached:.0f} reached) | {took.p50_ms:.1f} | {took.p99_ms:.1f}"
                        f" | {dict(statuses)} |",
                        flush=True,
                    )
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
