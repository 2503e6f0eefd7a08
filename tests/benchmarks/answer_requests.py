# ruff: noqa: T201 - a table on the terminal is the point
"""What the API's two commonest answers cost without HTTP: `python -m tests.benchmarks.answer_requests`.

Each asked for plainly, and with a `&` too many, so that the framework answers. One after the other, in one
process, on embedded servers of its own; processor time is this process's, without Postgres's and Valkey's.
"""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from sqlalchemy import make_url

from db.accounts.quick_reads import QuickReads
from db.postgres.engine import make_engine
from metering.api.app import make_app
from metering.api.context import ApiContext
from metering.api.thread_pools import QUICK_CONNECTIONS
from metering.payments.context import Payments
from metering.runtime.clock import system_clock
from metering.runtime.redis_connection import connect_redis, connect_redis_async
from metering.signals.gate_reader import MAX_CONNECTIONS, TIMEOUT_S, GateReader
from metering.signals.holds import HoldsAsync
from metering.trials.bench.fixture import TIER, Fixture, making_fixture
from metering.trials.bench.http_reads import make_asking_org

ORG_ID = 9
TIMES = 2_000
GATE = (f"/v1/gate/{ORG_ID}", f"direction=outbound&tier={TIER}")
ASKED = {
    "account": ("/v1/billing", ""),
    "account, by the framework": ("/v1/billing", "&"),
    "gate": GATE,
    "gate, by the framework": (GATE[0], f"{GATE[1]}&"),
}


class _Clock:
    """All of `Payments` that reading needs."""

    clock = staticmethod(system_clock)


def context_on(fixture: Fixture) -> ApiContext:
    """As `metering api` makes it, but for payments."""
    client = connect_redis_async(
        fixture.servers.redis_url, timeout_s=TIMEOUT_S, max_connections=MAX_CONNECTIONS
    )
    return ApiContext(
        engine=make_engine(
            fixture.servers.database_url, application_name="bench", pool_size=QUICK_CONNECTIONS
        ),
        reads=QuickReads(make_url(fixture.servers.database_url), application_name="bench"),
        stream=connect_redis(fixture.servers.redis_url),
        gate_reader=GateReader(client),
        holds=HoldsAsync(client),
        payments=cast("Payments", _Clock()),
    )


async def measure(context: ApiContext, api_key: str) -> None:
    """Ask for each so many times, and print a table."""
    app = make_app(context)
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def ask(path: str, query: str, times: int) -> None:
        for _ in range(times):
            scope = {
                "type": "http",
                "http_version": "1.1",
                "method": "GET",
                "scheme": "http",
                "path": path,
                "raw_path": path.encode(),
                "query_string": query.encode(),
                "root_path": "",
                "headers": [(b"host", b"h"), (b"authorization", f"Bearer {api_key}".encode())],
                "client": ("127.0.0.1", 1),
                "server": ("127.0.0.1", 2),
                "state": {},
            }
            await app(scope, receive, send)

    await context.reads.open()
    context.prices.read(context.engine, system_clock())
    print("| answer | us | processor, us |\n| --- | ---: | ---: |")
    for name, (path, query) in ASKED.items():
        await ask(path, query, TIMES // 10)
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        await ask(path, query, TIMES)
        took_s, used_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        print(f"| {name} | {took_s * 1e6 / TIMES:.0f} | {used_s * 1e6 / TIMES:.0f} |", flush=True)
    await context.gate_reader.close()
    await context.reads.close()
    if set(statuses) != {200}:
        raise SystemExit(f"not everything was answered well: {set(statuses)}")


def main() -> None:
    """Measure on servers of its own."""
    data_dir = Path(tempfile.mkdtemp(prefix="metering-answers-"))
    try:
        with making_fixture(data_dir) as fixture:
            context = context_on(fixture)
            asyncio.run(measure(context, make_asking_org(fixture, ORG_ID)))
            context.engine.dispose()
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
