"""The limit of an org's concurrent calls is in its gate, whoever writes the gate (docs/reference/gate.md#concurrent-calls)."""

from datetime import UTC, datetime

import pytest
import redis
from sqlalchemy import text

from db.accounts.call_limits import limit_concurrent_calls
from db.ledger.adjustments import adjust
from db.ledger.balances import raise_versions
from db.postgres.engine import transaction
from metering.rules.gates import Balance
from metering.runtime.clock import system_clock
from metering.signals.gates import Gates
from tests.conftest import Database
from tests.signals.listening import gate, signals_log
from tests.spine.billing import event, prepare, price, push, run_meters
from workers.gate_reconciler import GateReconciler

AT = datetime(2026, 4, 20, 18, 25, 6, tzinfo=UTC)


def limited(org_id: int, version: int, limit: int | None, cents: int = 5) -> Balance:
    return Balance(org_id, cents, version, max_concurrent_calls=limit)


def limit_of(client: redis.Redis, org_id: int) -> str | None:
    return gate(client, org_id).get("max_concurrent_calls")


def test_a_gate_has_the_limit_of_its_version(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    # One call, states and limits mixed: each limit must come to its own gate.
    gates.follow(
        [
            limited(1, 1, 7),
            limited(2, 1, None),
            limited(3, 1, 9, cents=-1),
            limited(4, 1, 11),
            Balance(5, 5, 1, suspended=True, max_concurrent_calls=13),
        ],
        AT,
    )
    assert [limit_of(redis_client, each) for each in range(1, 6)] == ["7", None, "9", "11", "13"]
    assert [each.max_concurrent_calls for each in gates.read(range(1, 6))] == [7, None, 9, 11, 13]
    gates.follow([limited(1, 1, 8), limited(4, 0, None)], AT)  # no newer version
    assert (limit_of(redis_client, 1), limit_of(redis_client, 4)) == ("7", "11")
    gates.follow([limited(1, 2, None), limited(4, 2, 12), limited(2, 2, 3)], AT)
    assert [limit_of(redis_client, each) for each in (1, 4, 2)] == [None, "12", "3"]


@pytest.fixture
def org(database: Database, redis_client: redis.Redis) -> int:
    """An org with 80 cents, a limit of 5, and its gate."""
    prepare(database.engine, org_ids=[42], prices=[price("bolt", "0.08")])
    with transaction(database.engine) as connection:
        adjust(connection, 42, amount_cents=80, reason="x", key="start")
        done = limit_concurrent_calls(connection, 42, 5)
    assert done.changed
    Gates(redis_client).follow([done.balance], system_clock())
    return 42


def reconcile(database: Database, client: redis.Redis) -> int:
    return GateReconciler(database.engine, Gates(client), clock=system_clock).reconcile().mended


def test_a_meter_that_makes_the_gate_anew_brings_the_limit(
    database: Database, redis_client: redis.Redis, org: int
) -> None:
    redis_client.flushall()
    push(redis_client, [event(org_id=org)])
    run_meters(database.engine, redis_client)
    assert gate(redis_client, org) == {
        "state": "open",
        "balance_cents": "64",
        "version": "3",
        "max_concurrent_calls": "5",
    }


@pytest.mark.parametrize(
    "damage",
    [
        ("HDEL", "gate:42", "max_concurrent_calls"),
        ("HSET", "gate:42", "max_concurrent_calls", "500"),
        ("HSET", "gate:42", "max_concurrent_calls", "many"),
        ("HSET", "gate:42", "max_concurrent_calls", "6", "version", "999"),
        ("DEL", "gate:42"),
    ],
    ids=" ".join,
)
def test_a_limit_that_somebody_changed_is_mended(
    database: Database, redis_client: redis.Redis, org: int, damage: tuple[str, ...]
) -> None:
    redis_client.execute_command(*damage)  # type: ignore[no-untyped-call]
    assert reconcile(database, redis_client) == 1
    assert limit_of(redis_client, org) == "5"
    assert reconcile(database, redis_client) == 0


def test_a_limit_where_there_is_none_is_mended(database: Database, redis_client: redis.Redis) -> None:
    """Also one that reads like none: nobody can tell what a program makes of it."""
    prepare(database.engine, org_ids=[42], prices=[])
    reconcile(database, redis_client)
    for text_ in ("5", "many", ""):
        redis_client.hset("gate:42", "max_concurrent_calls", text_)
        assert reconcile(database, redis_client) == 1
        assert limit_of(redis_client, 42) is None


def test_a_limit_that_did_not_come_to_its_gate_is_brought_there(
    database: Database, redis_client: redis.Redis, org: int
) -> None:
    """A crash after the commit; and a debit of the version before, which knows no limit, was quicker."""
    with transaction(database.engine) as connection:
        later = limit_concurrent_calls(connection, org, 9)
    Gates(redis_client).follow([limited(org, later.balance.version + 1, 5, cents=80)], system_clock())
    with transaction(database.engine) as connection:
        connection.execute(text("UPDATE accounts SET version = version + 1"))
    assert reconcile(database, redis_client) == 1
    assert limit_of(redis_client, org) == "9"


def test_the_same_limit_again_changes_nothing(database: Database, org: int) -> None:
    with transaction(database.engine) as connection:
        again = limit_concurrent_calls(connection, org, 5)
    assert (again.changed, again.balance) == (False, limited(org, 2, 5, cents=80))
    with transaction(database.engine) as connection:
        none = limit_concurrent_calls(connection, org, None)
    assert (none.before, none.changed, none.balance) == (5, True, limited(org, 3, None, cents=80))
    assert raise_versions(database.engine, {org: 99}) == [limited(org, 100, None, cents=80)]


def test_a_suspended_org_may_be_limited_and_no_signal_is_said(
    database: Database, redis_client: redis.Redis, org: int
) -> None:
    said = len(signals_log(redis_client))
    with transaction(database.engine) as connection:
        connection.execute(text("UPDATE accounts SET suspended_at = now(), suspended_version = version"))
        done = limit_concurrent_calls(connection, org, 3)
    assert done.balance.suspended
    assert raise_versions(database.engine, {org: 99})[0].max_concurrent_calls == 3
    Gates(redis_client).follow([limited(org, 4, 3, cents=80)], system_clock())
    assert len(signals_log(redis_client)) == said
