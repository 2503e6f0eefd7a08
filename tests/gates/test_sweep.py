"""Whatever left a gate wrong, the sweep finds it and mends it, and says each change of state once."""

import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from db.adjustments import adjust
from db.engine import make_engine, transaction
from db.schema import migrate
from metering.rules.gates import Balance
from metering.runtime.clock import system_clock
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.servers import running
from metering.signals.gates import Gates
from tests.conftest import Database
from tests.gates.listening import EXHAUSTED, RESTORED, adjust_and_tell, gate, said_of, signals_log
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
from workers.sweep import Sweep


def sweep(database: Database, client: redis.Redis) -> Sweep:
    return Sweep(database.engine, Gates(client), clock=system_clock)


def adjust_silently(database: Database, org_id: int, amount_cents: int, key: str) -> None:
    """What is left when a process dies between its commit and Redis."""
    with transaction(database.engine) as connection:
        adjust(connection, org_id, amount_cents=amount_cents, reason="test", key=key, clock=system_clock)


@pytest.fixture
def orgs(database: Database, redis_client: redis.Redis) -> range:
    """Forty orgs: odd ones with 100 cents, even ones with nothing."""
    org_ids = range(1, 41)
    prepare(database.engine, org_ids=org_ids, prices=[price("bolt", "0.08")])
    for org_id in org_ids[::2]:
        adjust_and_tell(database.engine, redis_client, org_id, 100, "start")
    sweep(database, redis_client).sweep()
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
    again = sweep(database, redis_client).sweep()
    assert (again.orgs, again.exhausted, again.mended, again.removed, again.signals) == (40, 20, 0, 0, 0)
    assert {signal["type"] for signal in signals_log(redis_client)} == {RESTORED}


def test_what_a_crash_after_the_commit_left_is_mended_and_said_once(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    adjust_silently(database, 1, -100, "gone")
    assert gate(redis_client, 1)["state"] == "open"
    assert sweep(database, redis_client).sweep().mended == 1
    assert gate(redis_client, 1)["state"] == "exhausted"
    assert said_of(redis_client, 1) == [RESTORED, EXHAUSTED]
    sweep(database, redis_client).sweep()
    assert said_of(redis_client, 1) == [RESTORED, EXHAUSTED]


def test_after_flushall_all_gates_come_back(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    redis_client.flushall()
    assert gate(redis_client, 1) == {}  # not `open`: lets nobody in
    assert sweep(database, redis_client).sweep().mended == 40
    assert_gates_follow(database, redis_client)


@pytest.mark.parametrize(
    "damage",
    [
        ("HSET", "gate:2", "state", "open"),
        ("HSET", "gate:2", "balance_cents", "5"),
        ("HSET", "gate:2", "state", "open", "version", "999"),
        ("HSET", "gate:2", "version", "nonsense"),
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
    assert sweep(database, redis_client).sweep().mended == 1
    assert_gates_follow(database, redis_client)
    assert sweep(database, redis_client).sweep().mended == 0
    adjust_and_tell(database.engine, redis_client, 2, 7, "later")
    assert_gates_follow(database, redis_client)
    assert_sound(database.engine)


def test_a_gate_without_an_org_is_removed(database: Database, redis_client: redis.Redis, orgs: range) -> None:
    Gates(redis_client).follow([Balance(777, 5, 3)], system_clock())
    assert sweep(database, redis_client).sweep().removed == 1
    assert gate(redis_client, 777) == {}
    assert said_of(redis_client, 777) == [RESTORED, EXHAUSTED]


def test_two_sweeps_beside_busy_meters_do_no_harm(
    database: Database, redis_client: redis.Redis, orgs: range
) -> None:
    stop = threading.Event()
    rounds = random.Random(5)

    def sweep_again_and_again() -> int:
        mended = 0
        while not stop.is_set():
            mended += sweep(database, redis_client).sweep().mended
        return mended

    with ThreadPoolExecutor(2) as threads:
        sweeping = [threads.submit(sweep_again_and_again) for _ in range(2)]
        with running_meters(database.engine, redis_client, meters=2, batch_limit=20):
            push(redis_client, [event(org_id=rounds.randint(1, 40), call_id=n) for n in range(2_000)])
            wait_until(lambda: redis_client.xlen("calls:completed") == 0, limit_s=60)
        stop.set()
        for each in sweeping:
            each.result()
    sweep(database, redis_client).sweep()
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
            Sweep(engine, Gates(client), clock=system_clock).sweep()
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
            sweeper = Sweep(engine, Gates(client), clock=system_clock)
            sweeper.sweep()
            assert [gate(client, org_id)["state"] for org_id in (1, 2, 3, 4)] == [
                "open",
                "open",
                "open",
                "exhausted",
            ]
            assert gate(client, 5) == {}
            assert said_of(client, 5)[-1] == EXHAUSTED
            assert sweeper.sweep().mended == 0
            # And from then on every change counts again, although Redis had seen higher versions.
            push(client, [event(org_id=2, call_id=n) for n in range(1, 11)])
            run_meters(engine, client)
            assert gate(client, 2)["state"] == "exhausted"
            assert_sound(engine)
        engine.dispose()


def test_a_sweep_outlives_an_outage_of_redis(database: Database, data_dir: Path) -> None:
    prepare(database.engine, org_ids=[1], prices=[])
    adjust_silently(database, 1, 5, "start")
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        with running(data_dir, postgres=False) as servers:
            redis_url = servers.redis_url
        with connect_redis(redis_url) as client:
            try:
                sweeping = threads.submit(sweep(database, client).run, stop)
                with running(data_dir, postgres=False):
                    wait_until(lambda: gate(client, 1).get("state") == "open", limit_s=30)
            finally:
                stop.set()
            sweeping.result()
