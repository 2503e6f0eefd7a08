"""An event that can't be processed is alone kept aside; an outage, however odd, is no event's fault."""

from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, make_url

import workers.batch_poster
import workers.meter
import workers.prefetch
from db.ledger.post_calls import Posted, PricedCall, post_calls
from metering.rules.rejections import Reason
from metering.runtime.names import STREAM
from tests.conftest import Database
from tests.spine.billing import debits, rejections
from tests.workers.calls import assert_billed, encode, expected_of, make_calls, read_all
from tests.workers.processes import Site, wait_until
from workers.batch import ParsedEntry, parse_entries
from workers.meter import GIVE_UP_AFTER_DELIVERIES, ISOLATE_AFTER_DELIVERIES
from workers.stream import GROUP, CallStream, Entry, backlog

LONG_AGO_MS = 60_000
TRIES_AGAIN = {"outage: trying again after a back-off", "another transaction holds what this batch needs"}


class KilledError(BaseException):
    """What a test raises where a process would die: nothing in the meter catches it."""


def leave_pending(site: Site, events: Sequence[bytes]) -> list[str]:
    """Push events, and let a meter that is gone have read them long ago. Gives their stream ids."""
    site.push(events)
    dead = CallStream(site.client, "dead")
    dead.join()
    stream_ids = [entry.stream_id for entry in read_all(dead, limit=len(events))]
    age(site, stream_ids, deliveries=1)
    return stream_ids


def age(site: Site, stream_ids: Sequence[str], *, deliveries: int) -> None:
    """Make entries look as if they had been delivered so often, the last time long ago."""
    site.client.xclaim(
        STREAM, GROUP, "dead", 0, list(stream_ids), idle=LONG_AGO_MS, retrycount=deliveries, justid=True
    )


def assert_only_these_rejected(site: Site, events: Sequence[bytes], bad: Sequence[bytes]) -> None:
    """Everything is billed as it must be, but `bad`: each of them is kept, once, as `unprocessable`."""
    kept = rejections(site.engine)
    assert Counter(bytes(row.raw) for row in kept) == Counter(bad)
    assert {row.reason for row in kept} == {Reason.UNPROCESSABLE.value}
    expected = expected_of([raw for raw in events if raw not in bad])
    assert {(row.org_id, row.call_id): -row.amount_cents for row in debits(site.engine)} == expected.debits
    assert backlog(site.client).length == backlog(site.client).pending == 0


def test_an_entry_that_came_too_often_is_given_up(site: Site) -> None:
    events = make_calls(60, seed=51, broken=False)
    stream_ids = leave_pending(site, events)
    age(site, stream_ids[30:31], deliveries=GIVE_UP_AFTER_DELIVERIES)
    age(site, stream_ids[40:41], deliveries=GIVE_UP_AFTER_DELIVERIES - 1)
    age(site, stream_ids[50:51], deliveries=ISOLATE_AFTER_DELIVERIES)
    site.drain("m")
    assert_only_these_rejected(site, events, [events[30]])
    assert rejections(site.engine)[0].detail == "delivered 10 times, and no meter finished it"


def test_an_event_that_kills_its_meter_takes_no_other_along(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [encode(call_id=call_id) for call_id in range(1, 41)]
    killer = events[17]
    in_hand: list[bytes] = []

    def parse_or_die(entries: Sequence[Entry]) -> list[ParsedEntry]:
        in_hand[:] = [entry.raw for entry in entries]
        if killer in in_hand:
            raise KilledError
        return parse_entries(entries)

    for module in (workers.meter, workers.prefetch):
        monkeypatch.setattr(module, "parse_entries", parse_or_die)
    site.push_at_once(events)
    deaths = 0
    while not site.drained():
        try:
            site.drain("m")
        except KilledError:
            deaths += 1
            assert in_hand == ([killer] if deaths > ISOLATE_AFTER_DELIVERIES else events)
    assert deaths == GIVE_UP_AFTER_DELIVERIES
    assert_only_these_rejected(site, events, [killer])


@pytest.mark.parametrize(
    "error", [psycopg.errors.NumericValueOutOfRange("too much"), RuntimeError("a fault of ours")]
)
def test_a_batch_that_fails_is_parted_around_the_guilty_events(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    events = [encode(call_id=call_id) for call_id in range(1, 301)]
    guilty = {77, 78, 200}

    def post_or_fail(
        connection: Connection, calls: Sequence[PricedCall], *rest: Any, **options: Any
    ) -> Posted:
        posted = post_calls(connection, calls, *rest, **options)
        if guilty & {call.event.call_id for call in calls}:
            raise error  # after the work: what was written must not stay
        return posted

    monkeypatch.setattr(workers.batch_poster, "post_calls", post_or_fail)
    site.push_at_once(events)
    site.drain("m")
    assert_only_these_rejected(site, events, [events[call_id - 1] for call_id in guilty])
    assert {row.detail for row in rejections(site.engine)} == {f"{type(error).__name__}: {error}"}


@pytest.mark.parametrize(
    ("damage", "repair"),
    [
        ("REVOKE INSERT ON transactions FROM metering_app", "GRANT INSERT ON transactions TO metering_app"),
        ("ALTER TABLE transactions RENAME TO gone", "ALTER TABLE gone RENAME TO transactions"),
        ("ALTER TABLE accounts RENAME version TO gone", "ALTER TABLE accounts RENAME gone TO version"),
    ],
    ids=["missing right", "missing table", "missing column"],
)
def test_a_database_unfit_for_work_is_no_event_s_fault(
    site: Site, database: Database, monkeypatch: pytest.MonkeyPatch, damage: str, repair: str
) -> None:
    """However often meters are started again meanwhile: that is what people do first."""
    attempts = count_calls(monkeypatch, "post_calls")
    events = make_calls(30, seed=52)

    def start_until_it_tries() -> None:
        before = attempts()
        with site.meters("m"):
            wait_until(lambda: attempts() > before, "a try")

    with plain_connection(database.owner_url) as owner:
        owner.execute(damage)
        site.push_at_once(events)
        for _ in range(GIVE_UP_AFTER_DELIVERIES + 2):
            start_until_it_tries()
        assert rejections(site.engine) == []
        owner.execute(repair)
    site.engine.dispose()
    site.drain("m")
    assert_billed(site.engine, site.client, events)


@pytest.mark.parametrize(
    ("damage", "repair"),
    [
        ("REVOKE INSERT ON transactions FROM metering_app", "GRANT INSERT ON transactions TO metering_app"),
        ("BEGIN; LOCK TABLE accounts", "ROLLBACK"),
    ],
    ids=["missing right", "locked"],
)
def test_entries_that_many_meters_take_from_each_other_in_vain_are_not_given_up(
    site: Site,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    logged: list[MutableMapping[str, Any]],
    damage: str,
    repair: str,
) -> None:
    monkeypatch.setattr(workers.meter, "CLAIM_EVERY_S", 0.05)
    events = [encode(call_id=call_id) for call_id in range(1, 11)]
    names = [f"m{number}" for number in range(GIVE_UP_AFTER_DELIVERIES + 3)]

    def all_have_tried() -> bool:
        return len({line["meter"] for line in logged if line["event"] in TRIES_AGAIN}) == len(names)

    with plain_connection(database.owner_url) as owner, site.meters(*names, abandoned_after_ms=60):
        wait_until(lambda: site.consumers() == set(names), "getting ready")
        owner.execute(damage)
        site.push_at_once(events)
        wait_until(all_have_tried, "a try of every meter")
        assert rejections(site.engine) == []
        owner.execute(repair)
        site.wait_until_drained()
    assert_billed(site.engine, site.client, events)


@contextmanager
def plain_connection(url: str) -> Iterator[psycopg.Connection]:
    """A connection that does as it is told, transactions included."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        yield connection


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> Callable[[], int]:
    """How often the meter has called that function since."""
    function = getattr(workers.batch_poster, name)
    calls: list[None] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return function(*arguments, **options)

    monkeypatch.setattr(workers.batch_poster, name, counted)
    return lambda: len(calls)
