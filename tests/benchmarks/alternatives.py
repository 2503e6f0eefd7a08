# ruff: noqa: T201 - a table on the terminal is the point
"""What other ways of doing a batch would cost: `python -m tests.benchmarks.alternatives [BATCHES]`.

The ledger's transaction, commit included, over batches of 2,000 calls of 1,000 orgs, on embedded servers of its own; each
alternative changes one thing. Each round goes through all of them, so that a busy machine slows all alike; the median of each is
compared with that of the program as it is. A last pair reads the stream with redis-py's parser in C (hiredis) and in Python.
"""

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from unittest.mock import patch

import psycopg
import redis
from redis._parsers import _HiredisParser, _RESP2Parser
from sqlalchemy import text

from db import ledger
from db.engine import transaction
from db.ledger import BalanceChange, PricedCall, post_calls
from db.prices import load_price_book
from metering.runtime.clock import system_clock
from metering.sandbox.load import events, fill
from metering.sandbox.measuring.bed import Bed, make_orgs, making_bed
from workers.batch import parse_entries, price_entries
from workers.stream import STREAM, Entry

ORGS = 1_000
BATCH = 2_000
ROUNDS = 5
BATCHES = 10
READS = 20

_COLUMNS = ledger.COPY_DEBITS[ledger.COPY_DEBITS.index("(") + 1 : ledger.COPY_DEBITS.index(")")]
_CALLS = count(1)


def _columns(
    debits: Sequence[PricedCall], accounts: dict[int, BalanceChange]
) -> tuple[list[list[object]], dict[int, BalanceChange]]:
    changed: dict[int, BalanceChange] = {}
    rows = list(ledger._debit_rows(debits, accounts, changed))
    return [list(column) for column in zip(*rows, strict=True)], changed


def by_insert(
    driver: psycopg.Connection, debits: Sequence[PricedCall], accounts: dict[int, BalanceChange]
) -> dict[int, BalanceChange]:
    """INSERT of arrays."""
    columns, changed = _columns(debits, accounts)
    arrays = ", ".join(f"%b::{kind}[]" for kind in ledger._COPY_TYPES)
    selected = _COLUMNS.replace("metadata", "metadata::json")
    statement = (
        f"INSERT INTO transactions ({_COLUMNS}) SELECT {selected} FROM unnest({arrays}) AS new ({_COLUMNS})"  # noqa: S608
    )
    driver.execute(statement.encode(), columns)
    return changed


def by_text_copy(
    driver: psycopg.Connection, debits: Sequence[PricedCall], accounts: dict[int, BalanceChange]
) -> dict[int, BalanceChange]:
    """COPY, with values as text."""
    changed: dict[int, BalanceChange] = {}
    with (
        driver.cursor() as cursor,
        cursor.copy(ledger.COPY_DEBITS.replace("(FORMAT BINARY)", "").encode()) as copy,
    ):
        for row in ledger._debit_rows(debits, accounts, changed):
            copy.write_row(row)
    return changed


def by_temporary_table(
    driver: psycopg.Connection, debits: Sequence[PricedCall], accounts: dict[int, BalanceChange]
) -> dict[int, BalanceChange]:
    """COPY into a temporary table, from there into the ledger."""
    changed: dict[int, BalanceChange] = {}
    driver.execute(
        "CREATE TEMPORARY TABLE IF NOT EXISTS incoming (LIKE transactions INCLUDING IDENTITY) ON COMMIT DELETE ROWS"
    )
    with (
        driver.cursor() as cursor,
        cursor.copy(ledger.COPY_DEBITS.replace("transactions", "incoming").encode()) as copy,
    ):
        copy.set_types(ledger._COPY_TYPES)
        for row in ledger._debit_rows(debits, accounts, changed):
            copy.write_row(row)
    driver.execute(f"INSERT INTO transactions ({_COLUMNS}) SELECT {_COLUMNS} FROM incoming".encode())  # noqa: S608
    return changed


@contextmanager
def owners(bed: Bed, before: str, after: str) -> Iterator[None]:
    """Something done to the schema, and undone."""
    with bed.owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in before.split(";"):
            connection.execute(text(statement))
        yield
        for statement in after.split(";"):
            connection.execute(text(statement))


def ways(bed: Bed) -> dict[str, Callable[[], AbstractContextManager[object]]]:
    """Each way by its name; the first is the program as it is."""
    return {
        "as it is": nullcontext,
        "INSERT of arrays instead of COPY": partial(patch.object, ledger, "_write_debits", by_insert),
        "COPY of text instead of binary": partial(patch.object, ledger, "_write_debits", by_text_copy),
        "COPY into a temporary table first": partial(
            patch.object, ledger, "_write_debits", by_temporary_table
        ),
        "calls in the order in which they came": partial(patch.object, ledger, "_ORG_ID", lambda _: 0),
        "psycopg's own arrays": partial(patch.object, ledger, "array", list),
        "a round trip for each statement": partial(
            patch.object, psycopg.Connection, "pipeline", lambda _: nullcontext()
        ),
        "accounts packed full (fillfactor 100)": partial(
            owners,
            bed,
            "ALTER TABLE accounts SET (fillfactor = 100); VACUUM FULL accounts",
            "ALTER TABLE accounts SET (fillfactor = 50); VACUUM FULL accounts",
        ),
        "one more index, over org and time": partial(
            owners,
            bed,
            "CREATE INDEX one_more ON transactions (org_id, created_at)",
            "DROP INDEX one_more",
        ),
    }


def batch_us(bed: Bed, batches: int) -> float:
    """Microseconds per event of so many new batches, from parsed events to the commit."""
    loads = []
    for _ in range(batches):
        first = next(_CALLS) * 10_000_000
        raw = [each.encode() for each in events(BATCH, orgs=ORGS, first_call_id=first, seed=first)]
        loads.append(
            parse_entries([Entry(f"1-{number}", each) for number, each in enumerate(raw)], system_clock())
        )
    with transaction(bed.engine) as connection:
        book = load_price_book(connection)
    started_s = time.perf_counter()
    for parsed in loads:
        priced, rejected = price_entries(parsed, book)
        with transaction(bed.engine) as connection:
            post_calls(connection, priced, rejected, price_book_version=book.version, clock=system_clock)
    return (time.perf_counter() - started_s) * 1e6 / (batches * BATCH)


def read_us(url: str, parser: type) -> float:
    """Microseconds per event read from the stream."""
    with redis.Redis(connection_pool=redis.ConnectionPool.from_url(url, parser_class=parser)) as client:
        client.xrange(STREAM, count=BATCH)
        started_s = time.perf_counter()
        for _ in range(READS):
            client.xrange(STREAM, count=BATCH)
        return (time.perf_counter() - started_s) * 1e6 / (READS * BATCH)


def main() -> None:
    """Measure all, and print a table."""
    batches = int(sys.argv[1]) if len(sys.argv) > 1 else BATCHES
    data_dir = Path(tempfile.mkdtemp(prefix="metering-alternatives-"))
    try:
        with making_bed(data_dir) as bed:
            make_orgs(bed.owner, range(1, ORGS + 1))
            batch_us(bed, batches)  # warm
            took: dict[str, list[float]] = {}
            for _ in range(ROUNDS):
                for name, way in ways(bed).items():
                    with way():
                        took.setdefault(name, []).append(batch_us(bed, batches))
            print(
                "| the ledger's transaction | us per event | to the program as it is |\n| --- | ---: | ---: |"
            )
            show(took)
            fill(bed.client, events(BATCH, orgs=ORGS, first_call_id=1, seed=1), lambda _: None)
            read: dict[str, list[float]] = {}
            for _ in range(ROUNDS):
                for name, parser in (("hiredis, as it is", _HiredisParser), ("Python", _RESP2Parser)):
                    read.setdefault(name, []).append(read_us(bed.servers.redis_url, parser))
            print("\n| reading the stream | us per event | to the program as it is |\n| --- | ---: | ---: |")
            show(read)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


def show(took: dict[str, list[float]]) -> None:
    """A row for each, compared with the first."""
    medians = {name: statistics.median(each) for name, each in took.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"| {name} | {median:.1f} | {median / first:.2f} |")


if __name__ == "__main__":
    main()
