"""Measuring the meter, and in the same run what it is to be compared with."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psycopg
import redis
from sqlalchemy import Engine, make_url, text

from db.engine import transaction
from db.prices import set_price
from metering.rules.pricing import Price
from metering.runtime.clock import Clock, system_clock
from metering.sandbox.load import events, fill
from metering.signals.gates import Gates
from workers.meter import BATCH_LIMIT
from workers.stream import STREAM
from workers.sweep import Sweep

LOOK_EVERY_S: Final = 0.005
LIMIT_S: Final = 600.0
DURABLE: Final = ("fsync", "full_page_writes", "synchronous_commit")


class MeasuringError(Exception):
    """What was to be measured can't be. The text says why."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How many events, or rows, in how long."""

    count: int
    took_s: float

    @property
    def per_second(self) -> float:
        return self.count / self.took_s


def require_durability(engine: Engine) -> None:
    """Raise MeasuringError unless Postgres keeps what it commits: a faster one measures something else."""
    with transaction(engine) as connection:
        for setting in DURABLE:
            value = connection.execute(text("SELECT current_setting(:name)"), {"name": setting}).scalar_one()
            if value != "on":
                raise MeasuringError(f"Postgres has {setting} = {value}; only `on` is worth measuring.")


def prepare(owner: Engine, *, orgs: int, clock: Clock) -> None:
    """Make a tier and `orgs` orgs with money for a while."""
    with transaction(owner) as connection:
        set_price(connection, Price("bolt", None, 80_000, 60, 60, 0, 0), clock)
        connection.execute(
            text(
                "INSERT INTO accounts (org_id, name, created_at)"
                " SELECT n, 'Bench ' || n, :now FROM generate_series(1, :orgs) AS n ON CONFLICT DO NOTHING"
            ),
            {"orgs": orgs, "now": clock()},
        )
        connection.execute(text("ANALYZE accounts"))


@contextmanager
def _roles(meters: int, batch_limit: int, jobs: bool) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """So many meters, and jobs or none, as processes of their own, which find the embedded servers as any would."""
    roles = [
        ["meter", "--name", f"bench-{number}", "--batch-limit", str(batch_limit)] for number in range(meters)
    ]
    roles += [["stripe-sandbox"], ["jobs"]] if jobs else []
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "metering", *role, "--stop-with-stdin"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for role in roles
    ]
    try:
        yield processes
    finally:
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
            process.terminate()
        for process in processes:
            process.wait()


def measure_meters(
    client: redis.Redis,
    *,
    meters: int,
    report: Callable[[int], None],
    batch_limit: int = BATCH_LIMIT,
    jobs: bool = False,
) -> Rate:
    """From a filled stream to the last ack, by so many meters; from when the first of them begins, not from its start.

    With `jobs` the jobs role runs beside them, and so its sweeps.
    """
    filled = left = client.xlen(STREAM)
    started_s = 0.0
    give_up_s = time.monotonic() + LIMIT_S
    with _roles(meters, batch_limit, jobs) as processes:
        while left:
            time.sleep(LOOK_EVERY_S)
            now_left = client.xlen(STREAM)
            report(left - now_left)
            left = now_left
            if not started_s and left < filled:
                started_s, filled = time.monotonic(), left
            if time.monotonic() > give_up_s or any(process.poll() is not None for process in processes):
                raise MeasuringError(f"{left:,} events were not billed; is a meter's log telling why?")
        return Rate(filled, time.monotonic() - started_s)


def measure_sweep(engine: Engine, client: redis.Redis) -> float:
    """Seconds that a sweep takes over all gates when none is wrong."""
    sweep = Sweep(engine, Gates(client), clock=system_clock)
    sweep.sweep()
    return sweep.sweep().took_s


def measure_raw_copy(owner_url: str) -> Rate:
    """COPY of the debits that the ledger holds into an empty table with the same columns, checks and indexes."""
    url = make_url(owner_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE bench_copy (LIKE transactions INCLUDING ALL)")
        with connection.cursor().copy("COPY transactions TO STDOUT (FORMAT BINARY)") as out:
            data = [bytes(block) for block in out]
        connection.commit()
        started_s = time.monotonic()
        with connection.cursor() as cursor:
            with cursor.copy("COPY bench_copy FROM STDIN (FORMAT BINARY)") as copy:
                for block in data:
                    copy.write(block)
            rows = cursor.rowcount
        connection.commit()
        took_s = time.monotonic() - started_s
        connection.execute("DROP TABLE bench_copy")
    return Rate(rows, took_s)


def fill_stream(
    client: redis.Redis, count: int, *, orgs: int, turn: int, report: Callable[[int], None]
) -> None:
    """Fill the stream for one turn; no two turns share a call."""
    fill(client, events(count, orgs=orgs, first_call_id=1 + turn * 100_000_000, seed=turn), report)
