"""Pages of transactions: right at every edge, against a model, and never by walking over the table."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import event, text

from db.engine import make_engine, transaction
from db.models import Kind
from db.transaction_list import ListedTransaction, TransactionFilter, TransactionPage, list_transactions
from tests.conftest import Database

BUSY, QUIET, EMPTY, HUGE_ID = 1, 2, 3, 2**63 - 1
START = datetime(2026, 4, 20, tzinfo=UTC)

FILL = text("""
    INSERT INTO transactions (
        org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key, call_id, metadata
    )
    SELECT org_id, kind, CASE kind WHEN 'debit' THEN -16 WHEN 'refund' THEN -5 ELSE 7 END, 0, created_at, kind,
        CASE WHEN kind <> 'debit' THEN 'key ' || number END, CASE WHEN kind = 'debit' THEN number END,
        CASE WHEN kind = 'debit' THEN '{"n": 1.0, "n": 2}'::json END
    FROM unnest(CAST(:org_ids AS bigint[]), CAST(:kinds AS text[]), CAST(:times AS timestamptz[]))
        WITH ORDINALITY AS made (org_id, kind, created_at, number)
    ORDER BY number
""")
COUNT = text(
    "UPDATE accounts SET transaction_count = (SELECT count(*) FROM transactions AS t WHERE t.org_id = accounts.org_id)"
)


def fill(database: Database, rows: list[tuple[int, str, datetime]]) -> None:
    """Write transactions in this order. Most are QUIET's neighbours: ids of one org are not dense."""
    org_ids, kinds, times = zip(*rows, strict=True)
    with transaction(database.engine) as connection:
        connection.execute(
            text(
                "INSERT INTO accounts (org_id, name, created_at) SELECT unnest(CAST(:org_ids AS bigint[])), 'Org', now()"
            ),
            {"org_ids": [BUSY, QUIET, EMPTY, HUGE_ID]},
        )
        connection.execute(FILL, {"org_ids": list(org_ids), "kinds": list(kinds), "times": list(times)})
        connection.execute(COUNT)


def rows_of(database: Database, org_id: int) -> list[Any]:
    """All of an org's transactions, newest first."""
    everything = text("SELECT id, kind, created_at FROM transactions WHERE org_id = :org_id ORDER BY id DESC")
    with transaction(database.engine) as connection:
        return list(connection.execute(everything, {"org_id": org_id}).all())


def model(rows: list[Any], wanted: TransactionFilter) -> list[int]:
    """The ids of the whole list, without any of the short cuts."""
    return [
        row.id
        for row in rows
        if (wanted.kind is None or row.kind == wanted.kind)
        and (wanted.since is None or row.created_at >= wanted.since)
        and (wanted.until is None or row.created_at < wanted.until)
    ]


@pytest.fixture
def filled(database: Database) -> Database:
    """Three orgs' transactions among each other, several of one instant."""
    random = Random(4)
    rows = []
    for number in range(600):
        kind = random.choices(list(Kind), weights=[80, 10, 5, 5])[0].value
        org_id = random.choice([BUSY, BUSY, BUSY, QUIET, HUGE_ID])
        rows.append((org_id, kind, START + timedelta(milliseconds=number // 3)))
    fill(database, rows)
    return database


def filters() -> Iterator[TransactionFilter]:
    edges = [None, *(START + timedelta(milliseconds=at) for at in (0, 77, 199, 200))]
    between = START + timedelta(milliseconds=77, microseconds=1)
    for kind in (None, *Kind):
        for since, until in [(since, until) for since in (*edges, between) for until in (*edges, between)]:
            yield TransactionFilter(kind, since, until)


@pytest.mark.parametrize("org_id", [BUSY, HUGE_ID])
def test_every_page_of_every_list_is_what_the_model_says(filled: Database, org_id: int) -> None:
    random, rows = Random(org_id), rows_of(filled, org_id)
    for wanted in filters():
        expected = model(rows, wanted)
        limits = [(200, 0), (1, len(expected)), (1, max(len(expected) - 1, 0)), (7, random.randrange(400))]
        for limit, offset in limits:
            page = list_transactions(filled.engine, org_id, wanted, limit=limit, offset=offset)
            assert page.total == len(expected), wanted
            assert [row.id for row in page.results] == expected[offset : offset + limit], (
                wanted,
                limit,
                offset,
            )


@pytest.mark.parametrize("org_id", [EMPTY, 4])
def test_an_org_without_transactions_or_that_is_not_there_has_an_empty_list(
    filled: Database, org_id: int
) -> None:
    for wanted in [TransactionFilter(), TransactionFilter(Kind.DEBIT), TransactionFilter(None, START, START)]:
        assert list_transactions(filled.engine, org_id, wanted, limit=1, offset=0) == TransactionPage([], 0)


def test_an_offset_of_any_size_is_past_the_end(filled: Database) -> None:
    page = list_transactions(filled.engine, BUSY, TransactionFilter(), limit=200, offset=2**63 - 1)
    assert (page.results, page.total > 0) == ([], True)


def test_times_of_any_year_are_edges(filled: Database) -> None:
    first, last = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    everything = list_transactions(filled.engine, BUSY, TransactionFilter(), limit=200, offset=0)
    assert (
        list_transactions(filled.engine, BUSY, TransactionFilter(None, first, last), limit=200, offset=0)
        == everything
    )
    assert (
        list_transactions(filled.engine, BUSY, TransactionFilter(since=last), limit=200, offset=0).total == 0
    )
    assert (
        list_transactions(filled.engine, BUSY, TransactionFilter(until=first), limit=200, offset=0).total == 0
    )


def test_a_row_is_told_as_it_is_and_metadata_as_it_came(filled: Database) -> None:
    (debit,) = list_transactions(
        filled.engine, BUSY, TransactionFilter(Kind.DEBIT), limit=1, offset=0
    ).results
    assert isinstance(debit, ListedTransaction)
    assert (debit.kind, debit.amount_cents, debit.description) == ("debit", -16, "debit")
    assert debit.metadata_json == '{"n": 1.0, "n": 2}'
    assert debit.created_at.utcoffset() == timedelta(0)
    (credit,) = list_transactions(
        filled.engine, BUSY, TransactionFilter(Kind.CREDIT), limit=1, offset=0
    ).results
    assert (credit.call_id, credit.metadata_json) == (None, None)


def test_page_and_total_are_of_one_moment(filled: Database) -> None:
    """Somebody posts between the two: what is counted and what is shown stay in step."""
    engine = make_engine(filled.url, application_name="tests")
    before = len(rows_of(filled, BUSY))
    posted: list[str] = []

    @event.listens_for(engine, "after_cursor_execute")
    def post(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "transaction_count" in statement and not posted:
            posted.append(statement)
            with transaction(filled.engine) as connection:
                connection.execute(
                    FILL, {"org_ids": [BUSY], "kinds": ["refund"], "times": [START + timedelta(days=1)]}
                )
                connection.execute(COUNT)

    page = list_transactions(engine, BUSY, TransactionFilter(), limit=200, offset=before - 200)
    engine.dispose()
    assert posted
    assert page.total == before
    assert [row.id for row in page.results] == [row.id for row in rows_of(filled, BUSY)[-200:]]


def test_no_plan_walks_over_the_table(database: Database) -> None:
    """With one org that owns nearly everything, so that walking over the table would be tempting."""
    kinds = ["debit"] * 97 + ["credit", "refund", "adjustment"]
    fill(
        database,
        [
            (QUIET if number % 50 == 0 else BUSY, kinds[number % 100], START + timedelta(seconds=number))
            for number in range(20_000)
        ],
    )
    owner = make_engine(database.owner_url, application_name="tests")
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE transactions"))
    owner.dispose()
    said: list[tuple[str, Any]] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.lstrip().startswith("SELECT"):
            said.append((statement, parameters))

    day, deep = timedelta(hours=1), 12_000
    for wanted in [
        *(TransactionFilter(kind) for kind in (None, *Kind)),
        *(TransactionFilter(kind, START + day, START + 5 * day) for kind in (None, *Kind)),
    ]:
        for offset in (0, 100, deep):
            list_transactions(database.engine, BUSY, wanted, limit=50, offset=offset)
    event.remove(database.engine, "before_cursor_execute", note)
    assert len(said) > 80
    with transaction(database.engine) as connection:
        for statement, parameters in said:
            plan = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, BUFFERS OFF, SUMMARY OFF) {statement}", parameters
            )
            lines = [row[0] for row in plan]
            assert not [line for line in lines if "Seq Scan on transactions" in line], lines
            # Where a kind has few, all of them may be fetched and sorted.
            assert not [line for line in lines if "Bitmap Index Scan" in line and "money" not in line], lines
            fetching = [line for line in lines if "Index Scan" in line and "accounts" not in line]
            for line in (
                fetching
            ):  # rows that were looked at in the table: the page, and what isn't a debit before it
                assert float(re.findall(r"rows=([\d.]+)", line)[0]) <= 50 + deep * 3 / 97 + 10, lines
