# ruff: noqa: T201 - plans on the terminal are the point
"""What Postgres does for a batch: `python -m tests.benchmarks.explain_statements [DEBITS]` explains the hot path's statements.

On embedded servers of its own, a ledger of so many debits (1,000,000) over 1,000 orgs, a batch of 2,000 calls, one in twenty of
them billed before. COPY can't be explained; what it writes is in the WAL that the batch takes as a whole.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random

import psycopg
from sqlalchemy import Engine, make_url

from db.ledger.post_calls import post_calls
from db.ledger.price_book import load_price_book
from db.ledger.statements import FIND_BILLED_CALLS, LOCK_ACCOUNTS, UPDATE_ACCOUNTS
from db.postgres.arrays import array
from db.postgres.engine import driver_connection, transaction
from db.postgres.exchange import Statement
from metering.rules.times import format_time
from metering.runtime.clock import system_clock
from metering.trials.bench.fixture import Fixture, checkpoint, make_orgs, making_fixture
from metering.trials.bench.old_ledger import fill_ledger
from metering.trials.event_generator import events
from workers.batch import parse_entries, price_entries
from workers.stream import Entry

ORGS = 1_000
BATCH = 2_000
OLD_CALL_ID = 1_000_000_000_000
EXPLAIN = "EXPLAIN (ANALYZE, BUFFERS, WAL, COSTS OFF, SUMMARY ON) "

_LONG_ARRAY = re.compile(r"\{[0-9,]{40,}\}")


def explain(connection: psycopg.Connection, name: str, statement: Statement, values: list[str]) -> None:
    print(f"\n{name}")
    typed = re.sub(
        r"\$([0-9]+)", lambda number: f"{number[0]}::{statement.types[int(number[1]) - 1]}", statement.text
    )
    for row in psycopg.RawCursor(connection).execute((EXPLAIN + typed).encode(), values):
        print(f"  {_LONG_ARRAY.sub('{...}', row[0])}")


def explain_batch(fixture: Fixture, debits: int, *, side_by_side: bool) -> None:
    """Each statement with the values of a batch, an org's calls side by side or not, in one transaction that is rolled back."""
    chance = Random(1)
    orgs = chance.choices(range(1, ORGS + 1), k=BATCH)
    if side_by_side:
        orgs.sort()
    calls = [
        OLD_CALL_ID + chance.randrange(debits // ORGS) * ORGS + org_id - 1 if number % 20 == 0 else number + 1
        for number, org_id in enumerate(orgs)
    ]
    distinct = sorted(set(orgs))
    url = make_url(fixture.servers.database_url).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        explain(connection, "lock the orgs", LOCK_ACCOUNTS, [array(distinct)])
        explain(connection, "look for calls billed before", FIND_BILLED_CALLS, [array(orgs), array(calls)])
        numbers = array([7] * len(distinct))
        times = array([format_time(system_clock())] * len(distinct))
        explain(
            connection,
            "bring balances up to date",
            UPDATE_ACCOUNTS,
            [array(distinct), numbers, numbers, numbers, times],
        )
        connection.rollback()


def wal_of_a_batch(engine: Engine) -> None:
    """The WAL of a batch by kind of record, by pg_stat_statements' cheaper cousin: the difference of two positions."""
    raw = [each.encode() for each in events(BATCH, orgs=ORGS, first_call_id=1, seed=1)]
    with transaction(engine) as connection:
        book = load_price_book(connection)
    parsed = parse_entries([Entry(f"1-{number}", each) for number, each in enumerate(raw)])
    priced = price_entries(parsed, book).calls
    with transaction(engine) as connection:
        driver = driver_connection(connection)
        before = driver.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        posted = post_calls(connection, priced, [], price_book_version=book.version)
        row = driver.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::bigint", before
        ).fetchone()
        print(f"\na batch: {len(posted.debits):,} debits, {row[0] if row else 0:,} bytes of WAL")


def main() -> None:
    """Fill a ledger and explain."""
    debits = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    data_dir = Path(tempfile.mkdtemp(prefix="metering-explain-"))
    try:
        with making_fixture(data_dir) as fixture:
            make_orgs(fixture.owner, range(1, ORGS + 1))
            written = fill_ledger(fixture.owner, debits, orgs=ORGS, at=system_clock(), report=lambda _: None)
            checkpoint(fixture)
            print(f"{written:,} debits in the ledger")
            for order, side_by_side in (("an org's calls side by side", True), ("as they came", False)):
                for turn in ("first", "second"):
                    print(f"\n== {order}, {turn}")
                    explain_batch(fixture, written, side_by_side=side_by_side)
            wal_of_a_batch(fixture.engine)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
