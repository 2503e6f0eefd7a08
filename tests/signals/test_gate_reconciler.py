"""Whatever left a gate wrong, the reconciler finds it and mends it, and says each change of state once."""

import random
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client import REGISTRY
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from db.ledger.adjustments import adjust
from db.ledger.balances import pages_of_org_ids, read_balances
from db.postgres.engine import make_engine, transaction
from db.postgres.schema import migrate
from metering.rules.gates import Balance
from metering.runtime.clock import system_clock
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.servers.embedded import running
from metering.signals.gates import MAX_VERSION, Gates
from tests.conftest import Database
from tests.signals.listening import EXHAUSTED, RESTORED, adjust_and_tell, gate, said_of, signals_log
from tests.spine.billing import (
    assert_sound,
    balances,
    event,
    prepare,
    price,
    push,
    run_meters,
    running_meters,
)
from tests.waiting import wait_until
from workers.gate_reconciler import GateReconciler


def reconciler(database: Database, client: redis.Redis) -> GateReconciler:
    return GateReconciler(database.engine, Gates(client), clock=system_clock)


def adjust_silently(database: Database, org_id: int, amount_cents: int, key: str) -> None:
    """What is left when a process dies between its commit and Redis."""
    with transaction(database.engine) as connection:
        adjust(connection, org_id, amount_cents=amount_cents, reason="test", key=key)


@pytest.fixture
def orgs(database: Database, redis_client: redis.Redis) -> range:
    """Forty orgs: odd ones with 100 cents, even ones with nothing."""
    org_ids = range(1, 41)
    prepare(database.engine, org_ids=org_ids, prices=[price("bolt", "0.08")])
    for org_id in org_ids[::2]:
        adjust_and_tell(database.engine, redis_client, org_id, 100, "start")
    reconciler(database, redis_client).reconcile()
    return org_ids


def assert_gates_follow(database: Database, client: redis.Redis) -> None:
    for org_id, balance_cents in balances(database.engine).items():
        held = gate(client, org_id)
        assert (org_id, held["state"]) == (org_id, "open" if balance_cents > 0 else "exhausted")
        assert held["balance_cents"] == str(balance_cents)


def test_every_org_gets_its_gate_and_nothing_is_mended_twice(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    assert_gates_follow(database, redis_client)
    again = reconciler(database, redis_client).reconcile()
    assert (again.orgs, again.exhausted, again.mended, again.orphans, again.signals) == (40, 20, 0, 0, 0)
    assert {signal["type"] for signal in signals_log(redis_client)} == {RESTORED}


def test_what_a_crash_after_the_commit_left_is_mended_and_said_once(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    adjust_silently(database, 1, -100, "gone")
    assert gate(redis_client, 1)["state"] == "open"
    assert reconciler(database, redis_client).reconcile().mended == 1
    assert gate(redis_client, 1)["state"] == "exhausted"
    assert said_of(redis_client, 1) == [RESTORED, EXHAUSTED]
    reconciler(database, redis_client).reconcile()
    assert said_of(redis_client, 1) == [RESTORED, EXHAUSTED]


def test_after_flushall_all_gates_come_back(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    redis_client.flushall()
    assert gate(redis_client, 1) == {}  # not `open`: lets nobody in
    assert reconciler(database, redis_client).reconcile().mended == 40
    assert_gates_follow(database, redis_client)


@pytest.mark.parametrize(
    "damage",
    [
        ("HSET", "gate:2", "state", "open"),
        ("HSET", "gate:2", "balance_cents", "5"),
        ("HSET", "gate:2", "state", "open", "version", "999"),
        ("HSET", "gate:2", "version", "nonsense"),
        ("HSET", "gate:2", "state", "open", "version", "nan"),
        ("HSET", "gate:2", "state", "open", "version", "1e999"),
        ("HSET", "gate:2", "state", "open", "version", "0x7fffffff"),
        ("HSET", "gate:2", "state", "open", "version", "17.5"),
        ("HSET", "gate:2", "state", "open", "version", "100000000000000000"),
        ("HSET", "gate:2", "state", "open", "version", str(MAX_VERSION + 1)),
        ("HSET", "gate:2", "state", "open", "version", "9223372036854775807"),
        ("HSET", "gate:2", "state", "open", "version", ""),
        ("HDEL", "gate:2", "state"),
        ("DEL", "gate:2"),
        ("SET", "gate:2", "open"),
    ],
    ids=" ".join,
)
def test_a_gate_that_somebody_changed_is_mended(
    database: Database, redis_client: redis.Redis, orgs: range, damage: tuple[str, ...]
) -> None:
    redis_client.execute_command(*damage)  # type: ignore[no-untyped-call]
    assert reconciler(database, redis_client).reconcile().mended == 1
    assert_gates_follow(database, redis_client)
    assert reconciler(database, redis_client).reconcile().mended == 0
    adjust_and_tell(database.engine, redis_client, 2, 7, "later")
    assert_gates_follow(database, redis_client)
    assert_sound(database.engine)


def test_a_gate_without_an_org_is_closed_and_stays_so(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    Gates(redis_client).follow([Balance(777, 5, 3)], system_clock())
    redis_client.hset("gate:778", mapping={"state": "open", "balance_cents": 5})  # without a version
    redis_client.set("gate:779", "open")
    reconciled = reconciler(database, redis_client).reconcile()
    assert (reconciled.mended, reconciled.orphans, reconciled.signals) == (0, 3, 2)
    assert gate(redis_client, 777) == {"state": "exhausted", "balance_cents": "0", "version": "4"}
    for org_id in (778, 779):
        assert gate(redis_client, org_id) == {"state": "exhausted", "balance_cents": "0", "version": "1"}
    assert said_of(redis_client, 777) == [RESTORED, EXHAUSTED]
    assert said_of(redis_client, 778) == [EXHAUSTED]
    assert reconciler(database, redis_client).reconcile().orphans == 0


def test_versions_do_not_go_back_when_an_org_is_made_again(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    Gates(redis_client).follow([Balance(777, 5, 30)], system_clock())
    reconciler(database, redis_client).reconcile()
    prepare(database.engine, org_ids=[777], prices=[])
    adjust_and_tell(database.engine, redis_client, 777, 9, "again")
    reconciler(database, redis_client).reconcile()
    assert gate(redis_client, 777) == {"state": "open", "balance_cents": "9", "version": "32"}
    versions = [signal["version"] for signal in signals_log(redis_client) if signal["org_id"] == 777]
    assert versions == [30, 31, 32]


def test_an_org_made_while_orphans_are_looked_for_keeps_its_gate(
    database: Database, redis_client: redis.Redis, orgs: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_client.hset("gate:777", "state", "?")

    def made_after(engine: Engine, org_ids: list[int]) -> list[Balance]:
        found = read_balances(engine, org_ids)
        if 777 in org_ids and not redis_client.hexists("gate:777", "version"):
            prepare(engine, org_ids=[777], prices=[])
            adjust_and_tell(engine, redis_client, 777, 9, "start")
        return found

    monkeypatch.setattr("workers.gate_reconciler.read_balances", made_after)
    assert reconciler(database, redis_client).reconcile().orphans == 0
    assert gate(redis_client, 777)["state"] == "open"


@pytest.mark.parametrize(
    "damage",
    [
        ("HSET", "gate:3", "state", "open", "version", "9223372036854775807"),
        ("HSET", "gate:99999999999999999999", "state", "open"),
    ],
    ids=" ".join,
)
def test_no_gate_can_end_the_reconciler(
    database: Database, redis_client: redis.Redis, orgs: range, damage: tuple[str, ...]
) -> None:
    redis_client.execute_command(*damage)  # type: ignore[no-untyped-call]
    adjust_silently(database, 1, -100, "gone")
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        reconciling = threads.submit(reconciler(database, redis_client).run, stop)
        try:
            wait_until(
                lambda: gate(redis_client, 1)["state"] == "exhausted" or reconciling.done(), limit_s=20
            )
            Gates(redis_client).follow([Balance(777, 5, 3)], system_clock())
            wait_until(
                lambda: gate(redis_client, 777)["state"] == "exhausted" or reconciling.done(), limit_s=20
            )
        finally:
            stop.set()
        reconciling.result()
    assert_gates_follow(database, redis_client)


def failing_once(
    error: Exception, work: Callable[..., Any], *, when: Callable[..., bool]
) -> Callable[..., Any]:
    """`work`, which raises `error` the first time that `when` holds of its arguments."""
    left = [error]

    def fail_first(*arguments: Any) -> Any:
        if left and when(*arguments):
            raise left.pop()
        return work(*arguments)

    return fail_first


def test_a_page_that_fails_is_told_and_the_others_are_mended(
    database: Database, redis_client: redis.Redis, orgs: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.gate_reconciler.PAGE", 10)
    failing = failing_once(ValueError("odd"), read_balances, when=lambda _, org_ids: 15 in org_ids)
    monkeypatch.setattr("workers.gate_reconciler.read_balances", failing)
    redis_client.flushall()
    with capture_logs() as told:
        reconciled = reconciler(database, redis_client).reconcile()
    assert (reconciled.mended, reconciled.pages_failed) == (30, 1)
    [line] = [each for each in told if each["event"] == "a page of gates could not be reconciled"]
    assert (line["lowest_org_id"], line["highest_org_id"]) == (11, 20)
    assert "odd" in line["error"]
    assert reconciler(database, redis_client).reconcile().mended == 10
    assert_gates_follow(database, redis_client)


@pytest.mark.parametrize("error", [redis.ConnectionError("away"), OSError("away")], ids=repr)
def test_a_reconciliation_ends_where_a_server_is_away(
    database: Database,
    redis_client: redis.Redis,
    orgs: range,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setattr(
        "workers.gate_reconciler.read_balances", failing_once(error, read_balances, when=lambda *_: True)
    )
    with pytest.raises(type(error), match="away"):
        reconciler(database, redis_client).reconcile()


def test_the_reconciler_outlives_whatever_a_reconciliation_raises(
    database: Database, redis_client: redis.Redis, orgs: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.gate_reconciler.PERIOD_S", 0.01)
    monkeypatch.setattr(
        "workers.gate_reconciler.pages_of_org_ids",
        failing_once(ValueError("odd"), pages_of_org_ids, when=lambda *_: True),
    )
    redis_client.flushall()
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        reconciling = threads.submit(reconciler(database, redis_client).run, stop)
        try:
            wait_until(lambda: gate(redis_client, 40) or reconciling.done(), limit_s=20)
        finally:
            stop.set()
        reconciling.result()
    assert_gates_follow(database, redis_client)


def test_an_org_that_somebody_holds_keeps_no_other_from_being_mended(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    for org_id in (2, 4):  # ahead of their balances
        redis_client.hset(f"gate:{org_id}", mapping={"state": "open", "version": 999})
    redis_client.delete("gate:6")
    adjust_silently(database, 1, -100, "gone")
    with transaction(database.engine) as connection:
        connection.execute(text("SELECT FROM accounts WHERE org_id = 2 FOR NO KEY UPDATE"))
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(reconciler(database, redis_client).reconcile).result().mended == 3
        assert [gate(redis_client, org_id)["state"] for org_id in (1, 2, 4, 6)] == [
            *("exhausted", "open", "exhausted", "exhausted")
        ]
    assert reconciler(database, redis_client).reconcile().mended == 1
    assert_gates_follow(database, redis_client)


def mended_total() -> float:
    return REGISTRY.get_sample_value("metering_gates_mended_total") or 0.0


def test_gates_that_follow_by_themselves_were_never_wrong(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    """A meter that is between its commit and Redis is no reason for an alarm; one that died there is."""
    for org_id in (1, 3, 5):
        adjust_silently(database, org_id, -100, "gone")
    pauses_s: list[float] = []

    def meanwhile(pause_s: float) -> None:
        pauses_s.append(pause_s)
        followers = read_balances(database.engine, [1, 3])
        Gates(redis_client).follow(followers[:1], system_clock())
        adjust_and_tell(database.engine, redis_client, 3, 7, "past it already")

    before = mended_total()
    with capture_logs() as told:
        reconciled = GateReconciler(
            database.engine, Gates(redis_client), clock=system_clock, sleep=meanwhile
        ).reconcile()
    assert (reconciled.mended, reconciled.signals) == (1, 1)
    assert mended_total() == before + 1
    assert [line["mended"] for line in told if line["event"] == "reconciled gates that were wrong"] == [1]
    assert pauses_s == [0.1]  # once for all
    assert_gates_follow(database, redis_client)

    with capture_logs() as told:
        GateReconciler(database.engine, Gates(redis_client), clock=system_clock, sleep=meanwhile).reconcile()
    assert mended_total() == before + 1
    assert told == []
    assert pauses_s == [0.1]  # nothing was behind: no second look


def test_only_what_was_written_is_counted(
    database: Database, redis_client: redis.Redis, orgs: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_client.delete("gate:1")

    def followed_meanwhile(engine: Engine, org_ids: list[int]) -> list[Balance]:
        found = read_balances(engine, org_ids)
        Gates(redis_client).follow(found, system_clock())
        return found

    monkeypatch.setattr("workers.gate_reconciler.read_balances", followed_meanwhile)
    before = mended_total()
    assert reconciler(database, redis_client).reconcile().mended == 0
    assert mended_total() == before


def test_missing_gates_wait_for_nothing(database: Database, redis_client: redis.Redis, orgs: range) -> None:
    redis_client.flushall()
    pauses_s: list[float] = []
    GateReconciler(
        database.engine, Gates(redis_client), clock=system_clock, sleep=pauses_s.append
    ).reconcile()
    assert pauses_s == []
    assert_gates_follow(database, redis_client)


def test_a_reconciliation_tells_of_gates_that_can_not_be_written(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    redis_client.flushall()
    redis_client.set("balance:signals:log", "somebody else's")
    with capture_logs() as told:
        reconciled = reconciler(database, redis_client).reconcile()
    assert (reconciled.mended, reconciled.failed) == (20, 20)  # the exhausted ones have nothing to say
    [line] = [each for each in told if each["event"] == "gates are wrong, and can't be reconciled for now"]
    assert line["gates"] == 20
    assert "WRONGTYPE" in line["error"]
    redis_client.delete("balance:signals:log")
    assert reconciler(database, redis_client).reconcile().mended == 20
    assert_gates_follow(database, redis_client)


def test_two_reconcilers_beside_busy_meters_do_no_harm(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    stop = threading.Event()
    rounds = random.Random(5)

    def reconcile_again_and_again() -> int:
        mended = 0
        while not stop.is_set():
            mended += reconciler(database, redis_client).reconcile().mended
        return mended

    with ThreadPoolExecutor(2) as threads:
        reconciling = [threads.submit(reconcile_again_and_again) for _ in range(2)]
        with running_meters(database.engine, redis_client, meters=2, batch_limit=20):
            push(redis_client, [event(org_id=rounds.randint(1, 40), call_id=n) for n in range(2_000)])
            wait_until(lambda: redis_client.xlen("calls:completed") == 0, limit_s=60)
        stop.set()
        for each in reconciling:
            each.result()
    reconciler(database, redis_client).reconcile()
    assert_gates_follow(database, redis_client)
    for org_id in orgs:
        said = said_of(redis_client, org_id)
        assert said == ([RESTORED, EXHAUSTED] if org_id % 2 else [])
    assert_sound(database.engine)


def test_gates_follow_a_postgres_that_was_restored_to_an_earlier_time(data_dir: Path) -> None:
    backup = data_dir.with_name("backup")
    with running(data_dir) as servers:
        owner = make_engine(servers.owner_database_url, application_name="tests")
        migrate(owner)
        owner.dispose()
        engine = make_engine(servers.database_url, application_name="tests", pool_size=4)
        prepare(engine, org_ids=[1, 2, 3, 4], prices=[price("bolt", "0.08")])
        with connect_redis(servers.redis_url) as client:
            for org_id in (1, 2, 3):
                adjust_and_tell(engine, client, org_id, 100, "start")
            GateReconciler(engine, Gates(client), clock=system_clock).reconcile()
        engine.dispose()
    shutil.copytree(data_dir / "postgres", backup)

    with running(data_dir) as servers:
        engine = make_engine(servers.database_url, application_name="tests", pool_size=4)
        with connect_redis(servers.redis_url) as client:
            push(client, [event(org_id=1, call_id=n) for n in range(1, 11)])  # exhausts org 1
            run_meters(engine, client, batch_limit=1)
            adjust_and_tell(engine, client, 4, 50, "later")  # opens org 4
            prepare(engine, org_ids=[5], prices=[])
            adjust_and_tell(engine, client, 5, 50, "later")  # an org that the backup doesn't know
            assert [gate(client, org_id)["state"] for org_id in (1, 2, 4, 5)] == [
                "exhausted",
                "open",
                "open",
                "open",
            ]
        engine.dispose()
    shutil.rmtree(data_dir / "postgres")
    backup.rename(data_dir / "postgres")

    with running(data_dir) as servers:
        engine = make_engine(servers.database_url, application_name="tests", pool_size=4)
        with connect_redis(servers.redis_url) as client:
            reconciler = GateReconciler(engine, Gates(client), clock=system_clock)
            reconciler.reconcile()
            assert [gate(client, org_id)["state"] for org_id in (1, 2, 3, 4)] == [
                "open",
                "open",
                "open",
                "exhausted",
            ]
            assert gate(client, 5)["state"] == "exhausted"
            assert said_of(client, 5)[-1] == EXHAUSTED
            assert reconciler.reconcile().mended == 0
            # And from then on every change counts again, although Redis had seen higher versions.
            push(client, [event(org_id=2, call_id=n) for n in range(1, 11)])
            run_meters(engine, client)
            assert gate(client, 2)["state"] == "exhausted"
            assert_sound(engine)
        engine.dispose()


def test_a_reconciliation_outlives_an_outage_of_redis(database: Database, data_dir: Path) -> None:
    prepare(database.engine, org_ids=[1], prices=[])
    adjust_silently(database, 1, 5, "start")
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        with running(data_dir, postgres=False) as servers:
            redis_url = servers.redis_url
        with connect_redis(redis_url) as client:
            try:
                reconciling = threads.submit(reconciler(database, client).run, stop)
                with running(data_dir, postgres=False):
                    wait_until(lambda: gate(client, 1).get("state") == "open", limit_s=30)
            finally:
                stop.set()
            reconciling.result()


def test_balances_in_all_and_orgs_are_told(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    adjust_silently(database, 2, -30, "debt")
    reconciler(database, redis_client).reconcile()
    told = REGISTRY.get_sample_value
    assert told("metering_balances_cents", {"sign": "positive"}) == 20 * 100
    assert told("metering_balances_cents", {"sign": "negative"}) == -30
    assert (told("metering_orgs"), told("metering_gates_exhausted")) == (40, 20)
