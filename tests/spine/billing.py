"""What the spine's tests share: pushing events, running meters until nothing waits, and reading what was billed."""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import redis
from sqlalchemy import Engine, text

from db.accounts.orgs import create_org
from db.audit.full import run_audit
from db.ledger.prices import set_price
from db.postgres.engine import transaction
from metering.rules.money import parse_usd
from metering.rules.pricing import Price
from metering.runtime.clock import Clock, system_clock
from metering.runtime.names import STREAM
from metering.signals.gates import Gates
from tests.waiting import wait_until
from workers.meter import ABANDONED_AFTER_MS, BATCH_LIMIT, Meter
from workers.reload_follower import ReloadFollower
from workers.stream import CallStream, backlog

DRAIN_LIMIT_S = 60


def price(tier: str, usd_per_minute: str, **terms: Any) -> Price:
    """A tier's first price: 60/60, no minimum, no fee, unless `terms` say otherwise."""
    defaults = {"increment_first_s": 60, "increment_next_s": 60, "minimum_s": 0, "connect_fee_microusd": 0}
    return Price(
        tier=tier,
        in_force_from=None,
        rate_microusd_per_minute=parse_usd(usd_per_minute),
        **(defaults | terms),
    )


def prepare(engine: Engine, *, org_ids: Iterable[int], prices: Iterable[Price]) -> None:
    """Make orgs and tiers."""
    with transaction(engine) as connection:
        for org_id in org_ids:
            create_org(connection, f"Org {org_id}", system_clock(), org_id=org_id)
        for each in prices:
            set_price(connection, each, system_clock)


def event(**fields: Any) -> dict[str, Any]:
    """A call event; `fields` replace the usual ones."""
    usual = {
        "call_id": 1,
        "org_id": 1,
        "tier": "bolt",
        "direction": "outbound",
        "duration_seconds": 75,
        "ended_at": "2026-04-20T18:25:06.201Z",
        "phone_number_id": 201,
        "phone_number_value": "+15551234567",
        "metadata": {},
    }
    return usual | fields


def push(client: redis.Redis, events: Iterable[Mapping[str, Any] | bytes]) -> None:
    """Push events, or bytes as they are, in their order."""
    pipeline = client.pipeline(transaction=False)
    for each in events:
        raw = each if isinstance(each, bytes) else json.dumps(each).encode()
        pipeline.xadd(STREAM, {"event": raw})
    pipeline.execute()


@contextmanager
def running_meters(
    engine: Engine,
    client: redis.Redis,
    *,
    meters: int = 1,
    batch_limit: int = BATCH_LIMIT,
    block_ms: int = 5,
    abandoned_after_ms: int = ABANDONED_AFTER_MS,
    clock: Clock = system_clock,
) -> Iterator[list[Future[None]]]:
    """So many meters, each in a thread, while the block runs; what ended one of them is raised at its end."""
    stop = threading.Event()

    def run(number: int) -> None:
        stream = CallStream(client, f"meter-{number}")
        Meter(
            engine,
            stream,
            Gates(client),
            ReloadFollower(engine, client),
            clock=clock,
            stop=stop,
            batch_limit=batch_limit,
            block_ms=block_ms,
            abandoned_after_ms=abandoned_after_ms,
        ).run()

    with ThreadPoolExecutor(meters) as threads:
        running = [threads.submit(run, number) for number in range(meters)]
        try:
            yield running
        finally:
            stop.set()
        for meter in running:
            meter.result()


def run_meters(
    engine: Engine,
    client: redis.Redis,
    *,
    meters: int = 1,
    batch_limit: int = BATCH_LIMIT,
    clock: Clock = system_clock,
) -> None:
    """Run so many meters until nothing waits in the stream."""
    with running_meters(engine, client, meters=meters, batch_limit=batch_limit, clock=clock) as running:
        wait_until(
            lambda: backlog(client).length == 0 or any(meter.done() for meter in running),
            limit_s=DRAIN_LIMIT_S,
            every_s=0.005,
        )
    assert backlog(client).length == 0
    assert backlog(client).pending == 0


def balances(engine: Engine) -> dict[int, int]:
    """Balances in cents, by org."""
    return {
        row.org_id: row.balance_cents for row in _rows(engine, "SELECT org_id, balance_cents FROM accounts")
    }


def debits(engine: Engine) -> list[Any]:
    """All debits, in order of org and id."""
    return _rows(engine, "SELECT * FROM transactions WHERE kind = 'debit' ORDER BY org_id, id")


def rejections(engine: Engine) -> list[Any]:
    """All rejected events, in order of id."""
    return _rows(engine, "SELECT * FROM rejected_events ORDER BY id")


def assert_sound(engine: Engine) -> None:
    """Every invariant holds."""
    report = run_audit(engine)
    assert report.passed, report.violations


def _rows(engine: Engine, query: str) -> list[Any]:
    with transaction(engine) as connection:
        return list(connection.execute(text(query)).all())
