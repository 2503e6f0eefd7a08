"""A thousand orgs that cross at once, three jobs processes, and a Stripe that takes 300 ms for everything."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis
from sqlalchemy import Engine, text

from db.ledger.adjustments import adjust
from db.ledger.post_calls import Posted, post_calls, price_call
from db.ledger.price_book import load_price_book
from db.postgres.engine import transaction
from metering.rules.events import CallEvent
from metering.rules.gates import GateState
from metering.runtime.clock import system_clock
from metering.sandbox.stripe import customers
from metering.sandbox.stripe.sandbox import StripeSandbox
from metering.signals.gates import Gates
from tests.conftest import Database
from tests.payments.reload_world import AMOUNT, MINIMUM, TIER
from tests.spine.billing import assert_sound, prepare
from tests.waiting import wait_until
from workers.reload_follower import ReloadFollower

ORGS = 1_000
BATCH = 500
PROCESSES = 3
LATENCY_S = 0.3
LIMIT_S = 180
OPEN_ATTEMPTS = text("SELECT count(*) FROM payment_attempts WHERE status = 'open'")


@contextmanager
def jobs(database: Database, redis_url: str, sandbox: StripeSandbox, log: Path) -> Iterator[None]:
    """Jobs as processes of their own, all of them at work."""
    environment = os.environ | {
        "METERING_DATABASE_URL": database.url,
        "METERING_REDIS_URL": redis_url,
        "METERING_METRICS_PORT": "0",
        "STRIPE_API_KEY": sandbox.api_key,
        "STRIPE_API_BASE": sandbox.url,
        "STRIPE_WEBHOOK_SECRET": "whsec_of_nobody",
    }
    command = [sys.executable, "-P", "-m", "metering", "jobs", "--verbose"]
    with ExitStack() as stack, log.open("wb") as output:
        running = [subprocess.Popen(command, env=environment, stderr=output) for _ in range(PROCESSES)]
        for each in running:
            stack.callback(each.wait)
            stack.callback(each.kill)
        wait_until(lambda: log.read_bytes().count(b"jobs are running") == PROCESSES, limit_s=60)
        yield


def enable_all(engine: Engine, sandbox: StripeSandbox) -> None:
    """Money, a card, and reloads for everybody."""
    prepare(engine, org_ids=range(1, ORGS + 1), prices=[TIER])
    for org_id in range(1, ORGS + 1):
        with sandbox._store.work() as work:
            customer = customers.create(work, {"metadata": {"org_id": str(org_id)}})["id"]
        method = sandbox.save_card(customer)
        with transaction(engine) as connection:
            connection.execute(
                text("""
                    UPDATE accounts SET stripe_customer_id = :customer, default_payment_method_id = :method,
                        default_card_identity = 'visa', auto_reload_enabled = true,
                        auto_reload_minimum_cents = 0, auto_reload_amount_cents = :amount,
                        auto_reload_monthly_limit_cents = :amount
                    WHERE org_id = :org_id
                """),
                {"customer": customer, "method": method, "amount": AMOUNT, "org_id": org_id},
            )
            adjust(connection, org_id, amount_cents=MINIMUM, reason="start", key="start")


def exhaust_all(engine: Engine) -> list[Posted]:
    """A call that empties each org's account, in batches as a meter posts them; nothing follows yet."""
    batches = []
    for first in range(1, ORGS + 1, BATCH):
        calls = []
        for org_id in range(first, first + BATCH):
            duration_us = MINIMUM * 1_000_000
            event = CallEvent(1, org_id, TIER.tier, "outbound", duration_us, system_clock(), None, None, "{}")
            calls.append(price_call(f"1-{org_id}", b"{}", event, TIER))
        with transaction(engine) as connection:
            version = load_price_book(connection).version
            batches.append(post_calls(connection, calls, [], price_book_version=version))
        assert len(batches[-1].reloads.attempts) == BATCH
    return batches


def follow(batches: Sequence[Posted], engine: Engine, client: redis.Redis) -> None:
    """What follows in a meter: gates, enqueued attempts, signals."""
    follower, gates = ReloadFollower(engine, client), Gates(client)
    for posted in batches:
        gates.follow([each.balance for each in posted.changes.values()], system_clock())
        follower.follow(posted.reloads)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_thousand_orgs_that_cross_at_once_are_each_charged_once(
    database: Database,
    redis_client: redis.Redis,
    redis_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine, gates = database.engine, Gates(redis_client)
    with StripeSandbox() as sandbox:
        enable_all(engine, sandbox)
        with jobs(database, redis_url, sandbox, tmp_path / "log"):
            sandbox.set_latency(LATENCY_S)
            began_s = time.monotonic()
            batches = exhaust_all(engine)
            crossed_s = time.monotonic()
            follow(batches, engine, redis_client)

            def open_gates() -> int:
                held = gates.read(range(1, ORGS + 1))
                return sum(gate.state == GateState.OPEN for gate in held)

            def open_attempts() -> int:
                with transaction(engine) as connection:
                    return connection.scalar(OPEN_ATTEMPTS) or 0

            # Looking at a thousand gates costs time that the jobs want; the last ones open when the last attempts have ended.
            wait_until(lambda: not open_attempts(), limit_s=LIMIT_S, every_s=0.1)
            wait_until(lambda: open_gates() == ORGS, limit_s=LIMIT_S)
            took_s = time.monotonic() - began_s
        totals = sandbox.totals()
    assert totals.charges == ORGS
    assert totals.asked["payment_intents.create"] == ORGS
    with transaction(engine) as connection:
        statuses = connection.execute(
            text("SELECT status, count(*) FROM payment_attempts GROUP BY status")
        ).all()
        balances = connection.execute(text("SELECT DISTINCT balance_cents FROM accounts")).all()
    assert statuses == [("succeeded", ORGS)]
    assert balances == [(AMOUNT,)]
    assert_sound(engine)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{ORGS} orgs crossed within {crossed_s - began_s:.1f} s; {PROCESSES} jobs processes, Stripe at"
            f" {LATENCY_S * 1_000:.0f} ms: the last gate was open after {took_s:.1f} s\n"
        )
