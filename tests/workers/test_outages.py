"""Outages of Postgres and of Valkey: the meter outlives them, keeps its place, and bills everything once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg import errors
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from db.postgres.engine import transaction
from db.postgres.failures import Failure, diagnose, driver_error
from metering.runtime.names import STREAM
from metering.runtime.redis_connection import connect_redis
from tests.spine.billing import assert_sound, balances, debits
from tests.workers.calls import ORG_IDS, assert_billed, encode, expected_of, make_calls
from tests.workers.own_servers import OwnServers
from tests.workers.processes import LIMIT_S, MeterProcess, Site, wait_until

WAITS = "outage: trying again after a back-off"


def kill_at_work(meter: MeterProcess, kill: Callable[[], None]) -> None:
    """Kill a server once the meter has billed some batches more, and return when it has noticed.

    Without Valkey it may be AfterCommit alone that says so: with one batch in its hands and one waiting, the third waits for it.
    """

    def noticed() -> int:
        return len(meter.said(WAITS)) + len(meter.said("could not ack a batch"))

    batches, before = len(meter.said("batch")), noticed()
    wait_until(lambda: len(meter.said("batch")) >= batches + 3, "billing three batches")
    kill()
    wait_until(lambda: noticed() > before, "noticing the outage")


@pytest.mark.long
def test_postgres_killed_while_events_flow(own_servers: OwnServers, own_site: Site) -> None:
    events = make_calls(6_000, seed=11)
    meter = own_site.start("m")
    with own_site.pushing(events):
        for _ in range(2):
            kill_at_work(meter, own_servers.kill_postgres)
            own_servers.start()
    own_site.wait_until_drained()
    assert meter.lives()
    own_site.engine.dispose()
    assert_billed(own_site.engine, own_site.client, events)


def test_postgres_away_for_seconds(own_servers: OwnServers, own_site: Site) -> None:
    events = make_calls(1_500, seed=12, conflicts=False)
    meters = [own_site.start("a"), own_site.start("b")]
    wait_until(lambda: all(meter.said("meter is ready") for meter in meters), "getting ready")
    own_site.push(events[:700])
    own_site.wait_until_drained()
    own_servers.stop_postgres()
    own_site.push(events[700:])
    wait_until(lambda: all(len(meter.said(WAITS)) >= 4 for meter in meters), "waiting four times")
    in_hand = own_site.deliveries()
    assert set(in_hand.values()) == {1}, "waiting must not use up deliveries"

    # Told to stop while it waits, it ends at once and leaves what it has in hand to be found again.
    meters[1].stop()
    assert own_site.deliveries() == in_hand
    meters[1] = own_site.start("b")
    wait_until(lambda: meters[1].said("waiting for Postgres"), "the new one's wait")
    assert own_site.deliveries() == in_hand

    own_servers.start()
    own_site.wait_until_drained()
    assert all(meter.lives() for meter in meters)
    own_site.engine.dispose()
    assert_billed(own_site.engine, own_site.client, events)


@pytest.mark.long
def test_valkey_killed_while_events_flow(own_servers: OwnServers, own_site: Site) -> None:
    """What it had said it has comes back from its append-only file."""
    # A producer that is unsure sends again, and a broken event would be kept twice then.
    events = make_calls(4_000, seed=13, broken=False)
    meter = own_site.start("m")
    with own_site.pushing(events):
        for _ in range(2):
            kill_at_work(meter, own_servers.kill_valkey)
            own_servers.start()
    own_site.wait_until_drained()
    assert meter.lives()
    assert_billed(own_site.engine, own_site.client, events)


def test_valkey_down_at_the_start(own_servers: OwnServers, own_site: Site) -> None:
    own_servers.kill_valkey()
    meter = own_site.start("m")
    wait_until(lambda: len(meter.said(WAITS)) >= 2, "waiting twice")
    own_servers.start()
    events = make_calls(100, seed=14)
    own_site.push(events)
    own_site.wait_until_drained()
    assert_billed(own_site.engine, own_site.client, events)


@pytest.mark.long
def test_flushall_while_producers_push(site: Site) -> None:
    """What was pushed after it is billed: the group is made again at 0, and no ack takes out an entry of the new stream."""
    meters = [site.start("a"), site.start("b")]
    wait_until(lambda: all(meter.said("meter is ready") for meter in meters), "getting ready")
    pushed: list[int] = []
    surely_billed: set[int] = set()

    def call(call_id: int) -> bytes:
        return encode(call_id=call_id, org_id=ORG_IDS[call_id % len(ORG_IDS)])

    def produce(enough: threading.Event) -> None:
        with connect_redis(site.redis_url) as client:
            while not enough.is_set():
                pushed.append(len(pushed) + 1)
                client.xadd(STREAM, {"event": call(pushed[-1])})

    def wait_for_more(number: int) -> None:
        wanted = len(pushed) + number
        wait_until(lambda: len(pushed) >= wanted, "pushing")

    for _ in range(10):
        enough = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            producer = threads.submit(produce, enough)
            try:
                wait_for_more(100)
                site.client.flushall()
                first_after = len(pushed) + 1  # the newest one's push may have begun before
                wait_for_more(100)
            finally:
                enough.set()
            producer.result(timeout=LIMIT_S)
        surely_billed |= set(range(first_after, len(pushed) + 1))
        site.wait_until_drained()
    assert all(meter.lives() for meter in meters)
    billed = {row.call_id for row in debits(site.engine)}
    assert surely_billed - billed == set()
    assert balances(site.engine) == expected_of([call(call_id) for call_id in billed]).balances
    assert_sound(site.engine)


def test_a_session_that_is_ended_before_its_commit_says_why(site: Site) -> None:
    """What was wrong must not be hidden by what follows from it: it decides what is done next."""

    def commit_on_an_ended_session() -> None:
        with transaction(site.engine) as connection:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            with site.engine.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    with pytest.raises(OperationalError) as raised:
        commit_on_an_ended_session()
    assert isinstance(driver_error(raised.value), errors.AdminShutdown)
    assert diagnose(raised.value) is Failure.OUTAGE
    with transaction(site.engine) as connection:
        assert connection.scalar(text("SELECT 1")) == 1
