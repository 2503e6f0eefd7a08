"""Daily usage is the ledger's sums: while calls are posted, by several that count, after crashes, and for an older history."""

import threading
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from db.audit.full import run_audit
from db.ledger.daily_usage import BEFORE_ALL, CountedPage, Usage, count_page, read_usage
from db.postgres.engine import transaction
from tests.conftest import Database
from tests.db import execute_as
from tests.db.audit.ledger import BOLT, FINE, a_call, make_orgs, make_prices, pay_in, post
from tests.payments.together import together
from workers.usage_job import UsageJob

MAY = datetime(2026, 5, 1, tzinfo=UTC)
NEVER = threading.Event()


@pytest.fixture
def engine(database: Database) -> Engine:
    make_orgs(database.engine, 1, 2, 3)
    make_prices(database.engine, BOLT, FINE)
    return database.engine


def bill(engine: Engine, *calls: tuple[int, int, datetime, int]) -> None:
    """Calls of bolt: of org, with id, started, lasting seconds."""
    post(
        engine,
        [
            a_call(org_id, call_id, "bolt", seconds * 1_000_000, started_at + timedelta(seconds=seconds))
            for org_id, call_id, started_at, seconds in calls
        ],
    )


def counted(engine: Engine) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM daily_usage ORDER BY org_id, tier, day"))
        return [tuple(row) for row in rows]


def read(engine: Engine, org_id: int, since: date = date.min) -> list[Usage]:
    with engine.connect() as connection:
        return read_usage(connection, org_id, since)


def test_a_call_counts_on_the_day_on_which_it_started_in_its_tier(engine: Engine) -> None:
    pay_in(engine, 1, 100)
    last_second = MAY + timedelta(hours=23, minutes=59, seconds=59)
    bill(engine, (1, 1, MAY - timedelta(seconds=1), 120), (1, 2, MAY, 60), (1, 3, last_second, 61))
    post(engine, [a_call(1, 4, "fine", 46_000_000, MAY + timedelta(seconds=46))])
    bill(engine, (2, 1, MAY, 1))
    assert UsageJob(engine, rest=0).count(NEVER) == 6
    may, april = MAY.date(), date(2026, 4, 30)
    assert counted(engine) == [
        (1, "bolt", april, 1, 120, 16),
        (1, "bolt", may, 2, 180, 24),
        (1, "fine", may, 1, 48, 28),
        (2, "bolt", may, 1, 60, 8),
    ]
    assert UsageJob(engine, rest=0).count(NEVER) == 0
    assert read(engine, 1, may) == [Usage("bolt", may, 2, 180, 24), Usage("fine", may, 1, 48, 28)]


def test_what_is_read_is_exact_before_it_is_counted_too(engine: Engine) -> None:
    may = MAY.date()
    bill(engine, (1, 1, MAY, 60))
    assert read(engine, 1) == [Usage("bolt", may, 1, 60, 8)]
    UsageJob(engine, rest=0).count(NEVER)
    bill(engine, (1, 2, MAY, 120))
    assert counted(engine) == [(1, "bolt", may, 1, 60, 8)]
    assert read(engine, 1) == [Usage("bolt", may, 2, 180, 24)]
    assert read(engine, 3) == []
    assert run_audit(engine).passed


@pytest.mark.parametrize("at_once", [1, 3, 4, 1_000])
def test_a_history_is_counted_page_by_page(engine: Engine, at_once: int) -> None:
    bill(engine, *((org_id, number, MAY, 60) for number in range(5) for org_id in (1, 2, 3)))
    pages = [CountedPage(0, BEFORE_ALL)]
    while pages[-1].next_after is not None:
        pages.append(count_page(engine, pages[-1].next_after, at_once=at_once))
        assert run_audit(engine).passed
    assert sum(page.transactions for page in pages) == 15
    assert [row[3] for row in counted(engine)] == [5, 5, 5]


def test_nothing_is_missed_or_counted_twice_while_calls_are_posted_and_several_count(engine: Engine) -> None:
    stop = threading.Event()
    posted: Counter[int] = Counter()

    def keep_posting(first: int) -> None:
        number = first
        while not stop.is_set():
            each = [a_call(org_id, number, "bolt", 1, MAY) for org_id in (1, 2, 3)]
            post(engine, each)
            posted.update(call.org_id for call in each)
            number += 1

    writers = [threading.Thread(target=keep_posting, args=(first,)) for first in (1, 1_000_000)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(10):
            together(*[lambda: count_page(engine, at_once=7)] * 3)
    finally:
        stop.set()
        for writer in writers:
            writer.join(30)
    while UsageJob(engine, rest=0).count(NEVER):
        pass
    assert {row[0]: row[3] for row in counted(engine)} == posted
    assert run_audit(engine).passed


def test_only_one_counts_at_a_time(engine: Engine) -> None:
    bill(engine, (1, 1, MAY, 60))
    with transaction(engine) as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(5147392086410227415)"))
        assert count_page(engine) == CountedPage(0, None)
    assert count_page(engine).transactions == 1


DAMAGES = {
    "calls": "UPDATE daily_usage SET calls = calls + 1",
    "seconds": "UPDATE daily_usage SET billable_seconds = billable_seconds - 1",
    "cents": "UPDATE daily_usage SET billed_cents = 0",
    "a day missing": "DELETE FROM daily_usage",
    "a day too many": "INSERT INTO daily_usage VALUES (1, 'bolt', '2026-01-01', 1, 1, 1)",
    "of nobody": "INSERT INTO daily_usage VALUES (9, 'bolt', '2026-01-01', 1, 1, 1)",
    "a cursor too far": "UPDATE daily_usage_cursors SET transaction_count = transaction_count + 1",
    "no cursor": "DELETE FROM daily_usage_cursors",
}


def test_the_audit_names_each_damage(engine: Engine, database: Database) -> None:
    bill(engine, (1, 1, MAY, 60))
    count_page(engine)
    for name, script in DAMAGES.items():
        execute_as(database.admin_url, script)
        assert {each.invariant for each in run_audit(engine).violations} == {"daily_usage_is_sum"}, name
        # The remedy that the reference names: the jobs count it again.
        execute_as(database.admin_url, "DELETE FROM daily_usage", "DELETE FROM daily_usage_cursors")
        count_page(engine)
        assert run_audit(engine).passed, name
