"""Events end holds: billed, of 0 seconds, repeated; what Redis can't end is owed, and ended by the jobs."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from db.ledger.owed_hold_ends import list_owed_ends
from db.postgres.engine import transaction
from metering.rules.gates import Balance
from metering.runtime.clock import system_clock
from metering.runtime.names import HOLDING_ORGS, gate_key, hold_ends_key, holds_key
from metering.runtime.redis_connection import connect_redis
from metering.signals.gates import Gates
from metering.signals.hold_library import loaded_version
from metering.signals.holds import HoldOutcome, Holds
from tests.conftest import Database
from tests.signals.holding import Seen
from tests.signals.listening import adjust_and_tell, gate
from tests.spine.billing import balances, event, prepare, price, push, run_meters, running_meters
from tests.waiting import wait_until
from workers.billed_holds import BilledHolds
from workers.hold_reconciler import HoldCountsCollector, HoldReconciler
from workers.stream import CallStream, backlog


@pytest.fixture
def holds(database: Database, redis_client: redis.Redis) -> Iterator[Holds]:
    """Org 42 has 100.00 dollars, a call of two minutes costs 16 cents; org 43 holds nothing."""
    prepare(database.engine, org_ids=[42, 43], prices=[price("bolt", "0.08")])
    adjust_and_tell(database.engine, redis_client, 42, 10_000, "start")
    yield Holds(redis_client)
    redis_client.function_flush()


def held(holds: Holds) -> Sequence[int]:
    return sorted(hold.call_id for hold in holds.calls(42).holds)


def test_an_event_ends_the_hold_of_its_call(
    database: Database, redis_client: redis.Redis, holds: Holds
) -> None:
    for call_id in range(1, 8):
        assert holds.start(42, call_id, 16, 240).outcome is HoldOutcome.GRANTED
    push(
        redis_client,
        [
            event(org_id=42, call_id=1),
            event(org_id=42, call_id=2, duration_seconds=0),
            event(org_id=42, call_id=1),  # in the same batch
            event(org_id=42, call_id=3, tier="nosuch"),
            event(org_id=42, call_id=4, duration_seconds=-1),
            b'{"org_id": 42, "call_id": 5',
            b'{"org_id": 42, "call_id": 5, "x": ' + b"[" * 3_000 + b"]" * 3_000 + b"}",
            event(org_id=43, call_id=6),
        ],
    )
    run_meters(database.engine, redis_client)
    assert held(holds) == [3, 4, 5, 6, 7]
    [totals] = holds.totals([42])
    assert (totals.held_cents, totals.running_calls, totals.lapsed_calls) == (
        80,
        3,
        2,
    )  # rejected ones don't run
    assert {each.call_id for each in holds.calls(42).holds if each.lapsed(holds.calls(42).now_ms)} == {3, 4}
    assert holds.start(42, 1, 16, 240).outcome is HoldOutcome.ENDED
    assert holds.renew(42, 2, 16, 240).outcome is HoldOutcome.ENDED
    assert gate(redis_client, 42)["balance_cents"] == "9984"
    assert not redis_client.exists(holds_key(43))


def test_a_duplicate_brings_the_gate_along(
    database: Database, redis_client: redis.Redis, holds: Holds
) -> None:
    """Who billed the call died before Redis heard of it: the money must not be neither spent nor held."""
    run_meters(database.engine, redis_client)
    before: Any = redis_client.hgetall(gate_key(42))
    push(redis_client, [event(org_id=42, call_id=1)])
    run_meters(database.engine, redis_client)
    redis_client.hset(gate_key(42), mapping=before)
    assert holds.start(42, 1, 16, 240).outcome is HoldOutcome.GRANTED
    push(redis_client, [event(org_id=42, call_id=1)])
    run_meters(database.engine, redis_client)
    assert held(holds) == []
    assert balances(database.engine)[42] == 9_984
    assert gate(redis_client, 42)["balance_cents"] == "9984"


def test_what_redis_cannot_end_the_jobs_do(
    database: Database, redis_client: redis.Redis, holds: Holds
) -> None:
    for call_id in (1, 2, 3):
        holds.start(42, call_id, 16, 240)
    CallStream(redis_client, "any").join()  # a Redis without memory makes no group
    try:
        push(
            redis_client,
            [event(org_id=42, call_id=1), event(org_id=42, call_id=2), event(org_id=43, call_id=3)],
        )
        redis_client.config_set("maxmemory", 1)
        with running_meters(database.engine, redis_client), capture_logs() as logs:
            wait_until(lambda: backlog(redis_client).length == 0, limit_s=30)
    finally:
        redis_client.config_set("maxmemory", 0)
    assert [each["calls"] for each in logs if each["event"] == "holds are left to the jobs to end"] == [2]
    with transaction(database.engine) as connection:
        assert list_owed_ends(connection, 10) == {42: [1, 2]}
    assert held(holds) == [1, 2, 3]  # with the gate behind, their money is still held
    HoldReconciler(database.engine, redis_client, clock=system_clock).reconcile()
    with transaction(database.engine) as connection:
        assert list_owed_ends(connection, 10) == {}
    assert held(holds) == [3]
    assert holds.totals([42])[0].held_cents == 16
    assert gate(redis_client, 42)["balance_cents"] == "9968"


def test_a_call_that_is_billed_already_holds_nothing_for_long(
    database: Database, redis_client: redis.Redis, holds: Holds
) -> None:
    """Redis forgot that its event was seen, and it was renewed once more; or a meter before holds has billed it."""
    push(redis_client, [event(org_id=42, call_id=1), event(org_id=43, call_id=2)])
    run_meters(database.engine, redis_client)
    assert (
        holds.start(42, 1, 16, 1).outcome is HoldOutcome.GRANTED
    )  # the org took no hold before: nothing was remembered
    assert holds.start(42, 2, 16, 1).outcome is HoldOutcome.GRANTED  # another org's call has that id
    assert holds.start(42, 3, 16, 600).outcome is HoldOutcome.GRANTED
    redis_client.zadd(hold_ends_key(42), {"junk": 1, str(2**63): 1})
    wait_until(lambda: holds.totals([42])[0].running_calls == 1, limit_s=20)
    BilledHolds(database.engine, redis_client, clock=system_clock).run_once(threading.Event())
    assert held(holds) == [2, 3]
    assert holds.totals([42])[0].held_cents == 32
    assert holds.renew(42, 1, 16, 240).outcome is HoldOutcome.ENDED


def test_the_jobs_load_the_functions_and_tell_of_what_lapsed(
    database: Database, redis_client: redis.Redis, holds: Holds
) -> None:
    reconciler = HoldReconciler(database.engine, redis_client, clock=system_clock)
    redis_client.function_flush()
    holds.start(42, 1, 16, 1)
    holds.start(42, 2, 16, 600)
    reconciler.reconcile()
    assert loaded_version(redis_client) is not None
    wait_until(lambda: holds.totals([42])[0].lapsed_calls == 1, limit_s=20)
    lapsed = holds.calls(42)
    wait_until(lambda: holds.calls(42).now_ms > lapsed.now_ms, limit_s=20)
    with capture_logs() as logs:
        reconciler.reconcile(threading.Event())
        reconciler.reconcile()
    said = [each for each in logs if each["event"].startswith("holds have lapsed")]
    assert [(each["org_id"], each["calls"], each["call_ids"]) for each in said] == [(42, 1, [1])]
    collected = {
        (sample.name, sample.labels.get("reason")): sample.value
        for metric in HoldCountsCollector(redis_client).collect()
        for sample in metric.samples
    }
    assert collected["metering_holds_started_total", None] == 2
    assert collected["metering_holds_lapses_total", None] == 1
    assert collected["metering_holds_refused_total", "insufficient"] == 0
    redis_client.function_flush()
    redis_client.set("holds:42:ends", "somebody else's")  # taken away with what it belongs to
    reconciler.reconcile()
    assert loaded_version(redis_client) is not None
    assert not redis_client.exists(holds_key(42), HOLDING_ORGS)


def test_what_is_no_hold_keeps_no_gate_from_following(redis_client: redis.Redis) -> None:
    Holds(redis_client).cancel(1, 1)
    gates = Gates(redis_client)
    redis_client.sadd(HOLDING_ORGS, 1, 2)
    redis_client.set(holds_key(1), "somebody else's")
    redis_client.hset(holds_key(2), mapping={"last_ms": 0, "7": "nonsense", "cents": 5})
    followed = gates.try_to_follow([Balance(1, 5, 1)], system_clock(), Seen({1: [1], 2: [7]}))
    assert (followed.written, followed.failed) == (1, 0)
    assert not redis_client.exists(holds_key(1))
    assert redis_client.hget(holds_key(2), "7") is None


def test_a_user_without_the_right_to_holds_still_follows(redis_url: str, redis_client: redis.Redis) -> None:
    """As Valkey's file had it before there were holds."""
    redis_client.acl_setuser(
        "before",
        enabled=True,
        passwords=["+secret"],
        keys=["gate:*", "balance:signals:log"],
        channels=["*"],
        categories=["+@all"],
    )
    try:
        with connect_redis(redis_url.replace("unix://", "unix://before:secret@")) as client:
            followed = Gates(client).try_to_follow([Balance(1, 5, 1)], system_clock(), Seen({1: [1]}))
        assert (followed.written, followed.failed) == (1, 0)
        assert "permission" in followed.holds_refused
    finally:
        redis_client.acl_deluser("before")
