"""Pages of transactions: right at every edge, against a model, and never by walking over the table."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from db.ledger import transaction_list, transaction_marks
from db.ledger.transaction_list import (
    ListedTransaction,
    PageOfList,
    TransactionFilter,
    TransactionPage,
    list_transactions,
)
from db.models import Kind
from db.postgres.engine import make_engine, transaction
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
FILL_MORE = text(str(FILL).replace("'key ' || number", ":key"))
STEP_OF_PLANS = 1_000
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


def set_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let marks be so far apart."""
    for module in (transaction_marks, transaction_list):
        monkeypatch.setattr(module, "STEP", step)


@pytest.mark.parametrize(
    ("org_id", "step"),
    [
        (BUSY, 7),
        pytest.param(BUSY, transaction_marks.STEP, marks=pytest.mark.long),
        pytest.param(HUGE_ID, 7, marks=pytest.mark.long),
        (HUGE_ID, transaction_marks.STEP),
    ],
)
def test_every_page_of_every_list_is_what_the_model_says(
    filled: Database, org_id: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_step(monkeypatch, step)
    random, rows = Random(org_id), rows_of(filled, org_id)
    for wanted in filters():
        expected = model(rows, wanted)
        limits = [(200, 0), (1, len(expected)), (1, max(len(expected) - 1, 0)), (7, random.randrange(400))]
        for limit, offset in limits:
            before_id = random.choice(
                [None, random.choice(rows).id, random.choice(rows).id + 1, 1, 2**63 - 1]
            )
            page = list_transactions(filled.engine, org_id, wanted, PageOfList(limit, offset, before_id))
            assert page.total == len(expected), wanted  # wherever the page begins
            below = [each for each in expected if before_id is None or each < before_id]
            case = (wanted, limit, offset, before_id)
            assert [row.id for row in page.results] == below[offset : offset + limit], case


def test_pages_by_id_do_not_move_while_calls_arrive(filled: Database) -> None:
    expected, seen, before_id = [row.id for row in rows_of(filled, BUSY)], [], None
    while True:
        page = list_transactions(filled.engine, BUSY, TransactionFilter(), PageOfList(7, 0, before_id))
        if not page.results:
            break
        seen += [row.id for row in page.results]
        before_id = seen[-1]
        with transaction(filled.engine) as connection:
            arrived = {"org_ids": [BUSY], "kinds": ["refund"], "times": [START + timedelta(days=len(seen))]}
            connection.execute(FILL_MORE, arrived | {"key": f"more {before_id}"})
    assert seen == expected


def test_a_call_is_found_by_its_key(filled: Database) -> None:
    everything = list_transactions(filled.engine, BUSY, TransactionFilter(Kind.DEBIT), PageOfList(200))
    for row in everything.results[::20]:
        of_call = TransactionFilter(call_id=row.call_id)
        assert list_transactions(filled.engine, BUSY, of_call, PageOfList(50)) == TransactionPage([row], 1)
        for wanted, found in [
            (TransactionFilter(Kind.DEBIT, call_id=row.call_id), 1),
            (TransactionFilter(Kind.CREDIT, call_id=row.call_id), 0),
            (TransactionFilter(None, row.created_at, None, row.call_id), 1),
            (TransactionFilter(None, None, row.created_at, row.call_id), 0),
        ]:
            assert list_transactions(filled.engine, BUSY, wanted, PageOfList(50)).total == found
        for asked, found in [
            (PageOfList(1, 1), 0),
            (PageOfList(1, 0, row.id), 0),
            (PageOfList(1, 0, row.id + 1), 1),
        ]:
            page = list_transactions(filled.engine, BUSY, of_call, asked)
            assert (len(page.results), page.total) == (found, 1)
        assert list_transactions(filled.engine, EMPTY, of_call, PageOfList(50)) == TransactionPage([], 0)


def test_marks_are_written_once_by_any_number_and_stay_true(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_step(monkeypatch, 7)
    monkeypatch.setattr(transaction_marks, "MARKS_AT_ONCE", 3)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(2):
            written = [threads.submit(transaction_marks.write_marks, filled.engine, BUSY) for _ in range(4)]
            assert [each.result() for each in written] == [None] * 4
    ids = [row.id for row in rows_of(filled, BUSY)][::-1]
    with transaction(filled.engine) as connection:
        marks = connection.execute(
            text(
                "SELECT position, transaction_id FROM transaction_marks WHERE org_id = :org_id ORDER BY position"
            ),
            {"org_id": BUSY},
        ).all()
        assert [tuple(each) for each in marks] == [(n, ids[n - 1]) for n in range(7, len(ids) + 1, 7)]
        for position in range(1, len(ids) + 1):
            assert transaction_marks.id_at(connection, BUSY, position) == ids[position - 1]
            assert transaction_marks.count_before(connection, BUSY, ids[position - 1]) == position - 1
        assert transaction_marks.id_at(connection, BUSY, len(ids) + 1) is None


def test_a_database_that_is_read_only_still_lists(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    set_step(monkeypatch, 7)
    expected = [row.id for row in rows_of(filled, BUSY)]
    read_only = make_engine(filled.url, application_name="tests")

    @event.listens_for(read_only, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")

    page = list_transactions(read_only, BUSY, TransactionFilter(), PageOfList(5, 100))
    read_only.dispose()
    assert [row.id for row in page.results] == expected[100:105]


@pytest.mark.parametrize("org_id", [EMPTY, 4])
def test_an_org_without_transactions_or_that_is_not_there_has_an_empty_list(
    filled: Database, org_id: int
) -> None:
    for wanted in [TransactionFilter(), TransactionFilter(Kind.DEBIT), TransactionFilter(None, START, START)]:
        assert list_transactions(filled.engine, org_id, wanted, PageOfList(1)) == TransactionPage([], 0)


def test_an_offset_of_any_size_is_past_the_end(filled: Database) -> None:
    page = list_transactions(filled.engine, BUSY, TransactionFilter(), PageOfList(200, 2**63 - 1))
    assert (page.results, page.total > 0) == ([], True)


def test_times_of_any_year_are_edges(filled: Database) -> None:
    first, last = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    everything = list_transactions(filled.engine, BUSY, TransactionFilter(), PageOfList(200))
    assert (
        list_transactions(filled.engine, BUSY, TransactionFilter(None, first, last), PageOfList(200))
        == everything
    )
    assert list_transactions(filled.engine, BUSY, TransactionFilter(since=last), PageOfList(200)).total == 0
    assert list_transactions(filled.engine, BUSY, TransactionFilter(until=first), PageOfList(200)).total == 0


def test_a_row_is_told_as_it_is_and_metadata_as_it_came(filled: Database) -> None:
    (debit,) = list_transactions(filled.engine, BUSY, TransactionFilter(Kind.DEBIT), PageOfList(1)).results
    assert isinstance(debit, ListedTransaction)
    assert (debit.kind, debit.amount_cents, debit.description) == ("debit", -16, "debit")
    assert debit.metadata_json == '{"n": 1.0, "n": 2}'
    assert debit.created_at.utcoffset() == timedelta(0)
    (credit,) = list_transactions(filled.engine, BUSY, TransactionFilter(Kind.CREDIT), PageOfList(1)).results
    assert (credit.call_id, credit.metadata_json) == (None, None)
    assert (credit.tier, credit.direction, credit.duration_us, credit.ended_at) == (None, None, None, None)


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

    page = list_transactions(engine, BUSY, TransactionFilter(), PageOfList(200, before - 200))
    engine.dispose()
    assert posted
    assert page.total == before
    assert [row.id for row in page.results] == [row.id for row in rows_of(filled, BUSY)[-200:]]


def test_no_plan_walks_over_the_table_and_none_far_over_an_index(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one org that owns nearly everything, so that walking over the table would be tempting."""
    set_step(monkeypatch, STEP_OF_PLANS)
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
            list_transactions(database.engine, BUSY, wanted, PageOfList(50, offset))
            list_transactions(database.engine, BUSY, wanted, PageOfList(50, offset, 15_000))
    list_transactions(database.engine, BUSY, TransactionFilter(call_id=9_999), PageOfList(50))
    event.remove(database.engine, "before_cursor_execute", note)
    assert len(said) > 80
    with transaction(database.engine) as connection:
        for statement, parameters in said:
            plan = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, BUFFERS OFF, SUMMARY OFF) {statement}", parameters
            )
            lines = [row[0] for row in plan]
            assert not [line for line in lines if "Seq Scan on transactions" in line], lines
            # Neither how deep a page lies nor how long a time is counted makes anybody walk further than between two marks.
            for line in (line for line in lines if "Index Only Scan" in line):
                walked = float(re.findall(r"rows=([\d.]+)", line)[0])
                assert walked <= STEP_OF_PLANS + 1 or "money" in line, (statement, lines)
            if "call_id = " in statement:
                assert any("transactions_call_key" in line for line in lines), lines
            # Where a kind has few, all of them may be fetched and sorted.
            assert not [line for line in lines if "Bitmap Index Scan" in line and "money" not in line], lines
            fetching = [line for line in lines if "Index Scan" in line and "accounts" not in line]
            for line in (
                fetching
            ):  # rows that were looked at in the table: the page, and what isn't a debit before it
                assert float(re.findall(r"rows=([\d.]+)", line)[0]) <= 50 + deep * 3 / 97 + 10, lines
