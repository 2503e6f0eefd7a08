# ruff: noqa: T201 - a table on the terminal is the point
"""How long a page of transactions takes: `python -m tests.benchmarks.list_transactions [TRANSACTIONS]`.

One org with 1,000,000 debits and a top-up for every 1,000 of them, on embedded servers of its own. Each page is asked for a few
times, with the total, as the API asks; the median counts.
"""

import shutil
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from sqlalchemy import text

from db.ledger.transaction_list import PageOfList, TransactionFilter, list_transactions
from db.models import Kind
from db.postgres.engine import transaction
from metering.runtime.clock import system_clock
from metering.trials.bench.fixture import make_orgs, making_fixture
from metering.trials.bench.old_ledger import fill_ledger

TIMES = 7
LIMIT = 50
STEPS = 100
"""In so many steps the ledger is filled, an hour apart, so that there are dates to choose."""

CREDITS = text("""
    INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)
    SELECT 1, 'credit', 1000, balance_cents + 1000 * n, :at, 'Top-up', 'bench-' || :step || '-' || n
    FROM generate_series(1, CAST(:count AS bigint)) AS n JOIN accounts ON org_id = 1 ORDER BY n
""")
ACCOUNT = text("""
    UPDATE accounts SET balance_cents = balance_cents + 1000 * :count, transaction_count = transaction_count + :count,
        version = version + 1, last_posted_at = :at
    WHERE org_id = 1
""")


def main() -> None:
    """Fill and ask."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    data_dir = Path(tempfile.mkdtemp(prefix="metering-listing-"))
    began_at = system_clock() - timedelta(hours=STEPS)
    try:
        with making_fixture(data_dir) as fixture:
            make_orgs(fixture.owner, [1])
            debits = 0
            for step in range(STEPS):
                at = began_at + timedelta(hours=step)
                debits += fill_ledger(
                    fixture.owner,
                    wanted // STEPS,
                    orgs=1,
                    at=at,
                    report=lambda _: None,
                    numbered_from=debits,
                    chunk=wanted // STEPS,
                )
                facts = {"at": at, "step": step, "count": wanted // STEPS // 1_000}
                with transaction(fixture.owner) as connection:
                    connection.execute(CREDITS, facts)
                    connection.execute(ACCOUNT, facts)
            everything = TransactionFilter()
            day = TransactionFilter(since=began_at, until=began_at + timedelta(days=1))
            half = TransactionFilter(until=began_at + timedelta(hours=STEPS // 2))
            asked = [
                ("first page", everything, 0),
                ("in the middle", everything, debits // 2),
                ("the last page", everything, debits - LIMIT),
                ("top-ups, first page", TransactionFilter(kind=Kind.CREDIT), 0),
                ("debits, in the middle", TransactionFilter(kind=Kind.DEBIT), debits // 2),
                ("one day", day, 0),
                ("half of it by date", half, 0),
            ]
            print("| page of 50, with the total | offset | of | ms |\n| --- | ---: | ---: | ---: |")
            for name, chosen, offset in asked:
                took_ms = []
                for _ in range(TIMES):
                    started_s = time.perf_counter()
                    page = list_transactions(fixture.engine, 1, chosen, PageOfList(LIMIT, offset))
                    took_ms.append((time.perf_counter() - started_s) * 1e3)
                print(f"| {name} | {offset:,} | {page.total:,} | {statistics.median(took_ms):.1f} |")
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
